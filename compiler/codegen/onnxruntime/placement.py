"""Where ONNX Runtime runs each node: predicted from the kernel table, or read from a real session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from ...errors import Problem
from ...ir.provenance import sources
from ...options import Target
from ...program import Program
from . import kernels

RECORD = "session.record_ep_graph_assignment_info"
"""Session config entry to set to ``"1"`` before a session is made whose placement ``actual`` shall read."""

_MADE_BY_RUNTIME = frozenset({"MemcpyToHost", "MemcpyFromHost"})
_HOST_RESULTS = frozenset({"Shape", "Size", "SequenceLength"})
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_SMALL = 100
_HOST_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split", "TopK", "CumSum",
                     "OneHot"), (1,)),
    **dict.fromkeys(("Pad", "CenterCropPad", "Dropout"), (1, 2, 3)),
    "ConstantOfShape": (0,), "Range": (0, 1, 2), "Slice": (1, 2, 3, 4), "Resize": (1, 2, 3), "Upsample": (1,),
    **{f"Reduce{k}": (1,) for k in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum",
                                       "LogSumExp", "SumSquare")},
}  # fmt: skip
"""Inputs that CUDA kernels read from host memory."""


def fallbacks(program: Program, target: Target) -> list[Problem]:
    """Every node that would run on the CPU although ``target`` is a GPU, with the reason; empty for ``cpu``.

    Shape arithmetic is no fallback: ONNX Runtime keeps nodes whose inputs all come from ``Shape`` on
    the host on purpose, because that is where their readers want them.
    """
    if target.device == "cpu":
        return []
    found: list[Problem] = []
    for name, model in program.entries.items():
        host, opset = host_values(model), kernels.emission_opset("CUDA", model)
        for node in _nodes(model.graph):
            reason = kernels.find("CUDA", node, _opset(model, node, opset), exact=True)
            if reason is None and any(v in host for v in node.outputs):
                reason = "ONNX Runtime prefers the CPU, because an input comes from shape arithmetic"
            if reason is not None and not _harmless(node, host):
                found.append(_problem(node, reason, name if len(program.entries) > 1 else ""))
    return found


def host_values(model: ir.Model) -> set[ir.Value]:
    """Values that ONNX Runtime keeps in host memory on purpose: shapes, and what it computes from them.

    Its rule (GetCpuPreferredNodes): a reader of a host value runs on the host if its other inputs are host
    values, graph inputs or initializers of at most 100 elements, and none is half precision.
    """
    host: set[ir.Value] = set()
    for node in _nodes(model.graph):
        if _produces_shapes(node) or _pulled_to_host(node, host):
            host.update(node.outputs)
    return host


def _produces_shapes(node: ir.Node) -> bool:
    return node.op_type in _HOST_RESULTS and node.domain == ""


def _pulled_to_host(node: ir.Node, host: set[ir.Value]) -> bool:
    inputs = [(i, v) for i, v in enumerate(node.inputs) if v is not None]
    reads = _HOST_INPUTS.get(node.op_type, ()) if node.domain == "" else ()
    if _has_graphs(node) or any(v in host and i in reads for i, v in inputs):
        return False  # the GPU kernel wants this input on the host and stays where it is
    return any(v in host for _, v in inputs) and all(_joins_host(v, host) for _, v in inputs)


def _joins_host(value: ir.Value, host: set[ir.Value]) -> bool:
    if value.dtype in _HALVES:
        return False
    producer = value.producer()
    constant = value.const_value
    small = constant is not None and constant.size <= _SMALL
    return (
        value in host
        or value.is_graph_input()
        or small
        or (producer is not None and producer.op_type == "Constant")
    )


def _harmless(node: ir.Node, host: set[ir.Value]) -> bool:
    """Host work that costs nothing: shape arithmetic, not a whole activation that was dragged along."""
    return all(v in host and not _is_activation(v) for v in node.outputs)


def _is_activation(value: ir.Value) -> bool:
    if (
        value.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
        or value.shape is None
        or len(value.shape) < 2
    ):
        return False
    size = 1
    for dim in value.shape:
        if not isinstance(dim, int):
            return True
        size *= dim
    return size > _SMALL


def actual(session: Any, program: Program) -> list[Problem]:
    """What a GPU session of ``program``'s main entry really left to the CPU, shape arithmetic excepted.

    ``session``: an ``onnxruntime.InferenceSession`` made with the config entry ``RECORD`` set to ``"1"``.
    Nodes that ONNX Runtime made itself (fusions, casts) are judged by their operator.
    """
    model = program.main
    by_name = {node.name: node for node in _nodes(model.graph)}
    host, opset = host_values(model), kernels.emission_opset("CUDA", model)
    found: list[Problem] = []
    for name, op_type, _domain in assigned(session, "CPUExecutionProvider"):
        node = by_name.get(name)
        if node is None:
            if op_type not in _MADE_BY_RUNTIME | _HOST_RESULTS and not name.startswith(
                "InsertedPrecisionFreeCast"
            ):
                place = f"node '{name}' ({op_type})"
                found.append(Problem(place, "ONNX Runtime made this node and placed it on the CPU", _FIX))
        elif not _harmless(node, host):
            reason = kernels.find("CUDA", node, _opset(model, node, opset), exact=True)
            found.append(_problem(node, reason or "ONNX Runtime placed it on the CPU"))
    return found


def assigned(session: Any, provider: str) -> list[tuple[str, str, str]]:
    """Name, operator and domain of every node a recording ``session`` gave to ``provider``."""
    return [
        (node.name, node.op_type, node.domain)
        for subgraph in session.get_provider_graph_assignment_info()
        if subgraph.ep_name == provider
        for node in subgraph.get_nodes()
    ]


_FIX = "allow it with --no-strict, or compile for cpu"


def _problem(node: ir.Node, reason: str, entry: str = "") -> Problem:
    origin = ", ".join(map(str, sources(node)[:2]))
    place = f"{f'entry {entry}, ' if entry else ''}node '{node.name}' ({node.op_type})"
    return Problem(f"{place} from {origin}" if origin else place, reason, _FIX)


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """All nodes, those of subgraphs right after the node that holds them; constants aside."""
    for node in graph:
        if node.op_type == "Constant" and node.domain == "":
            continue
        yield node
        for attr in node.attributes.values():
            if attr.type == ir.AttributeType.GRAPH:
                yield from _nodes(attr.as_graph())
            elif attr.type == ir.AttributeType.GRAPHS:
                for inner in attr.as_graphs():
                    yield from _nodes(inner)


def _has_graphs(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _opset(model: ir.Model, node: ir.Node, default: int) -> int:
    return default if node.domain in ("", "ai.onnx") else model.opset_imports.get(node.domain, 1)
