"""Shape inference: onnx's own, with data propagation, around the dialect's; weights are never loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import dialect
from ..errors import ModelError
from ..program import Program
from .protos import proto_without_weights
from .signatures import STANDARD_DOMAINS
from .symbol_sizes import is_open
from .symbols import resolve_symbols

if TYPE_CHECKING:
    import onnx


def infer_shapes(program: Program) -> None:
    """Fill in dtypes and shapes of every value, in place.

    What is recorded is kept and made more precise: a static size replaces a symbol, a symbol replaces an
    unknown size, never the other way round; a rewrite that changes a dtype or shape clears the stale ones
    first. Sizes that can't be derived get names (``unk__3``), the same size the same name, anew each time.
    A node whose inference fails keeps what is recorded.

    Raises: ModelError if the graph is too damaged for inference to walk it.
    """
    for model in program.entries.values():
        infer_model_shapes(model)


def infer_model_shapes(model: ir.Model) -> None:
    """``infer_shapes`` for one model."""
    for _ in range(4):  # a dialect operator may feed standard ones, which feed the next dialect operator
        _infer_standard(model)
        resolve_symbols(model.graph)
        if not _infer_dialect(model):
            return


def refine(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | None) -> bool:
    """Record what is newly known of ``value``; whether anything was."""
    changed = False
    if dtype and value.type is None:
        value.type = ir.TensorType(dtype)
        changed = True
    if shape is not None:
        merged = _merged(value.shape, shape)
        if merged is not None and merged != value.shape:
            value.shape = merged
            changed = True
    return changed


def _merged(recorded: ir.Shape | None, inferred: ir.Shape) -> ir.Shape | None:
    if recorded is None:
        return ir.Shape(inferred)
    if len(recorded) != len(inferred):
        return None
    return ir.Shape([_better(a, b) for a, b in zip(recorded, inferred, strict=True)])


def _better(recorded: int | ir.SymbolicDim, inferred: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    if isinstance(recorded, int):
        return recorded
    # a name from an earlier inference may mean another size in this one
    return inferred if isinstance(inferred, int) or is_open(recorded.value) else recorded


def _infer_dialect(model: ir.Model) -> bool:
    changed = False
    for node in model.graph.all_nodes():
        schema = dialect.schema(node.domain, node.op_type)
        if schema is not None:
            for value, (dtype, shape) in zip(node.outputs, schema.infer(node), strict=False):
                changed |= refine(value, dtype, shape)
    return changed


def _infer_standard(model: ir.Model) -> None:
    import onnx

    proto = proto_without_weights(model)
    _forget_open(model.graph, proto.graph)
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # onnx raises several unrelated types
        raise ModelError(f"graph {model.graph.name!r}", f"shape inference failed: {error}") from error
    _merge_graph(model.graph, inferred.graph)


def _forget_open(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    """Clear the open names of what will be inferred anew, so that they can be given again."""
    opaque = {v.name for node in graph if node.domain not in STANDARD_DOMAINS for v in node.outputs}
    for info in (*proto.value_info, *proto.output):
        if info.name in opaque or not info.type.HasField("tensor_type"):
            continue
        for dim in info.type.tensor_type.shape.dim:
            if is_open(dim.dim_param):
                dim.Clear()


def _merge_graph(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    infos = {info.name: info.type for group in (inferred.value_info, inferred.output) for info in group}
    for value in _values(graph):
        proto = infos.get(value.name or "")
        if proto is None or not proto.WhichOneof("value"):
            continue
        if value.type is None:
            value.type = ir.serde.deserialize_type_proto_for_type(proto)
        refine(value, None, ir.serde.deserialize_type_proto_for_shape(proto))
    for node, node_proto in zip(graph, inferred.node, strict=True):
        protos = {a.name: [a.g] if a.HasField("g") else list(a.graphs) for a in node_proto.attribute}
        for attr in node.attributes.values():
            if attr.is_ref() or attr.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                continue
            bodies: Iterable[ir.Graph] = (
                [attr.as_graph()] if attr.type == ir.AttributeType.GRAPH else attr.as_graphs()
            )
            for body, body_proto in zip(bodies, protos[attr.name], strict=True):
                _merge_graph(body, body_proto)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            refine(value, tensor.dtype, ir.Shape(tensor.shape.numpy()))
    for node in graph:
        yield from node.outputs
