"""A program as a Relax module: a function per entry, which takes the inputs and then the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...errors import InternalError
from ...program import Program, dim_of
from . import tensor_cores
from .kernels.kernel import Cpu, Kernel
from .linear import layer_at, lower
from .lowering import Lowering, Parameter, dtype_of
from .rules import rule_of


@dataclass(frozen=True, slots=True)
class Lowered:
    """A Relax module and what each of its functions takes behind the inputs of its entry."""

    module: Any
    parameters: dict[str, list[Parameter]]


def module_of(tvm: Any, program: Program, cpu: Cpu | None = None) -> Lowered:
    """The program's entries as functions of one module; equal kernels are shared."""
    from tvm import relax

    builder = relax.BlockBuilder()
    parameters = {}
    kernels: dict[object, Kernel] = {}
    for entry, model in program.entries.items():
        parameters[entry] = _function(tvm, builder, entry, model.graph, program, cpu, kernels)
    return Lowered(builder.finalize(), parameters)


def _function(
    tvm: Any,
    builder: Any,
    entry: str,
    graph: ir.Graph,
    program: Program,
    cpu: Cpu | None,
    kernels: dict[object, Kernel],
) -> list[Parameter]:
    from tvm import relax

    b = Lowering(tvm, graph, builder, cpu)
    kept = _kept(entry, program)
    inputs = []
    for number, value in enumerate(v for v in graph.inputs if v.name not in graph.initializers):
        shape = [
            _input_size(b, dim_of(d), f"size_{number}_{axis}") for axis, d in enumerate(value.shape or ())
        ]
        var = relax.Var(f"in{number}", relax.TensorType(shape, dtype_of(value.dtype)))
        b.bind(value, var)
        inputs.append(var)
    # the weights are known only once all nodes are lowered: their variables are declared behind the body
    builder.begin_scope(inputs)
    builder._begin_binding_block()
    absorbed: set[ir.Node] = set()
    for node in graph:
        b.walk.visit(node)
        layer = None if cpu is None or node in absorbed else layer_at(node)
        if layer is not None:
            b.bind(layer.result, lower(b, layer, kernels))
            absorbed.update(layer.nodes)
        elif node not in absorbed and (nodes := _on_tensor_cores(b, node)):
            absorbed.update(nodes)
        elif node not in absorbed:
            _lower(b, node)
    results = [builder.emit(b.value(v)) for v in graph.outputs if v.name not in kept]
    if cpu is None and kept:
        results.append(_lengths_after(b, graph, program))
    block = builder._end_block()
    body = builder.normalize(relax.SeqExpr([block], relax.Tuple(results)))
    builder.end_scope()
    function = relax.Function([*inputs, *b.parameter_vars], body, body.ty, is_pure=not b.asks)
    function = function.with_attr("global_symbol", entry)
    builder.add_func(function, entry)
    return b.parameters


def _kept(entry: str, program: Program) -> frozenset[str]:
    """Outputs that are inputs, updated in place."""
    decoding = program.decoding
    if decoding is None or decoding.entry != entry:
        return frozenset()
    return frozenset(tensor.output for tensor in decoding.state)


def _lengths_after(b: Lowering, graph: ir.Graph, program: Program) -> Any:
    """How long rows are after one more token: what the next step reads, where the host only looks on."""
    assert program.decoding is not None
    [lengths] = [v for v in graph.inputs if v.name == program.decoding.lengths]

    def after(held: Any) -> Any:
        return b.te.compute(held.shape, lambda n: held(n) + b.tirx.const(1, held.dtype), name="after")

    return b.compute(after, b.value(lengths), name="lengths_after")


def _input_size(b: Lowering, dim: Any, name: str) -> Any:
    if isinstance(dim, int):
        return dim
    if isinstance(dim, str) and not dim.isidentifier():
        from .dims import UnknownSizeError, size_of

        try:
            return size_of(dim, b.sizes)
        except UnknownSizeError:
            pass
    key = dim or name
    if key not in b.sizes:
        b.sizes[key] = b.tirx.Var(key if key.isidentifier() else name, "int64")
    return b.sizes[key]


def _on_tensor_cores(b: Lowering, node: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes that a product on tensor cores stands for; none where there is no kernel."""
    product = None if b.cpu is not None else tensor_cores.product_at(node)
    found = None if product is None else tensor_cores.lowered(b, product)
    if product is None or found is None:
        return ()
    b.bind(product.result, found)
    return product.nodes


def _lower(b: Lowering, node: ir.Node) -> None:
    rule = rule_of(node)
    if rule is None:
        raise InternalError(f"no rule for node {node.name!r} ({node.op_type})")
    results = rule.lower(b, node)
    if len(node.outputs) == 1 and not isinstance(results, (list, tuple)):
        results = [results]
    for value, result in zip(node.outputs, results, strict=False):
        b.bind(value, result)
