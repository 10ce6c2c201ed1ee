"""Emitting ArgMax over the last axis: the greedy choice, the first of equal ones."""

from __future__ import annotations

import onnx_ir as ir

from .base import Entry, Operator, times
from .views import required


def _argmax(node: ir.Node, entry: Entry) -> None:
    x, y = entry.contiguous(required(node, 0)), entry.new(node.outputs[0])
    width = x.shape[-1]
    entry.step(
        node,
        f"for (range r = share(w, {times(*x.shape[:-1])}, 1); r.begin < r.end; r.begin++)\n"
        f"    {y.pointer}[r.begin] = argmax({x.pointer} + r.begin * {width}, {width});",
    )


def _reason(node: ir.Node) -> str | None:
    source = node.inputs[0]
    if source is None or source.dtype != ir.DataType.FLOAT or source.shape is None:
        return "it is not of floats"
    if node.attributes.get_int("axis", 0) % len(source.shape) != len(source.shape) - 1:
        return "it is not along the last axis"
    return "it takes the last of equal ones" if node.attributes.get_int("select_last_index", 0) else None


OPERATORS = {"ArgMax": Operator(_argmax, _reason)}
