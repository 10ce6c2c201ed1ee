"""Emitting layer and RMS norms of the last axis, where no Linear takes them in."""

from __future__ import annotations

import onnx_ir as ir

from .base import Entry, Operator
from .linear import NORMS, c_float, rows
from .views import input_of, required


def _norm(kind: str) -> Operator:
    def emit(node: ir.Node, entry: Entry) -> None:
        x, count, stride = rows(required(node, 0), entry)
        y = entry.new(node.outputs[0])
        width = x.shape[-1]
        scale, bias = (
            "NULL" if v is None else entry.contiguous(v).pointer
            for v in (input_of(node, 1), input_of(node, 2))
        )
        epsilon = c_float(node.attributes.get_float("epsilon", 1e-5))
        entry.step(
            node,
            f"for (range r = share(w, {count}, 1); r.begin < r.end; r.begin++)\n"
            f"    norm_row({NORMS[kind]}, {x.pointer} + r.begin * {stride}, {y.pointer} + r.begin * {width},"
            f" {width}, {scale},\n             {bias}, {epsilon});",
        )

    return Operator(emit, _reason)


def _reason(node: ir.Node) -> str | None:
    source = node.inputs[0]
    if source is None or source.shape is None or source.dtype != ir.DataType.FLOAT:
        return "it is not of floats of a known rank"
    axis = node.attributes.get_int("axis", -1) % len(source.shape)
    if axis != len(source.shape) - 1:
        return "it is not of the last axis alone"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its mean or deviation is read"
    return None


OPERATORS = {"LayerNormalization": _norm("layer"), "RMSNormalization": _norm("rms")}
