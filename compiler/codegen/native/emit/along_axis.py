"""Operators along one axis that keep its size: Softmax, LogSoftmax, CumSum."""

from __future__ import annotations

import onnx_ir as ir

from ....ir.constants import scalar
from .base import Entry, Operator, Size, View
from .expressions import FLOAT, INT32, INT64, SUFFIXES
from .gathers import index_of
from .loops import head_of, joined, names_of, offset, over_rows, per_row


def _axis_of(node: ir.Node) -> int:
    assert node.inputs[0] is not None and node.inputs[0].shape is not None
    axis = node.attributes.get_int("axis", -1)
    if node.op_type == "CumSum":
        given = scalar(node.inputs[1])
        assert isinstance(given, int)
        axis = given
    return axis % max(1, len(node.inputs[0].shape))


def _rows(source: View, target: View, axis: int) -> tuple[list[Size], str, str]:
    """The other axes, and the first elements of a row of source and target in a loop over them."""
    others = [a for a in range(len(source.shape)) if a != axis]
    sizes, (old, new) = joined(
        [source.shape[a] for a in others],
        ([source.strides[a] for a in others], [target.strides[a] for a in others]),
    )
    names = names_of(len(sizes))
    return sizes, source.pointer + offset(names, old), target.pointer + offset(names, new)


def _softmax(node: ir.Node, entry: Entry) -> None:
    assert node.inputs[0] is not None
    source, target = entry.view(node.inputs[0]), entry.new(node.outputs[0])
    if not source.shape:
        entry.step(node, f"if (w->index == 0)\n    {target.pointer}[0] = {int(node.op_type == 'Softmax')};")
        return
    axis = _axis_of(node)
    sizes, x, y = _rows(source, target, axis)
    count, logarithm = source.shape[axis], int(node.op_type == "LogSoftmax")
    line = f"softmax_row({x}, {source.strides[axis]}, {y}, {target.strides[axis]}, {count}, {logarithm});"
    entry.step(node, over_rows(sizes, [line], per_row(count, 1024)))


def _cumulative(node: ir.Node, entry: Entry) -> None:
    assert node.inputs[0] is not None and node.inputs[0].dtype is not None
    source, target = entry.view(node.inputs[0]), entry.new(node.outputs[0])
    axis, count = _axis_of(node), source.shape[_axis_of(node)]
    sizes, x, y = _rows(source, target, axis)
    index = names_of(len(sizes) + 1)[-1]
    ctype, suffix = target.ctype, SUFFIXES[node.inputs[0].dtype]
    place = "a"
    first = f"int64_t a = {count} - 1 - {index};" if node.attributes.get_int("reverse", 0) else ""
    if not first:
        place = index
    was = f"x[{index_of(offset([place], [source.strides[axis]]))}]"
    total = f"sum + {was}" if suffix == "f32" else f"add_{suffix}(sum, {was})"
    put = f"y[{index_of(offset([place], [target.strides[axis]]))}] = sum;"
    added = [put, f"sum = {total};"] if node.attributes.get_int("exclusive", 0) else [f"sum = {total};", put]
    lines = [
        f"const {ctype} *restrict x = {x};",
        f"{ctype} *restrict y = {y};",
        f"{ctype} sum = 0;",
        f"{head_of(index, count)} {{",
        *(f"    {line}" for line in (first, *added) if line),
        "}",
    ]
    entry.step(node, over_rows(sizes, lines, per_row(count)))


def _why_not_softmax(node: ir.Node) -> str | None:
    value = node.inputs[0]
    if value is None or value.dtype != FLOAT or value.shape is None:
        return "it is not of floats"
    if node.graph is not None and node.graph.opset_imports.get("", 13) < 13:
        return "before opset 13 it flattens the axes behind its own"
    return None


def _why_not_cumulative(node: ir.Node) -> str | None:
    value = node.inputs[0]
    if value is None or value.dtype not in (FLOAT, INT64, INT32) or not value.shape:
        return "its dtype or rank is not known"
    return None if scalar(node.inputs[1]) is not None else "its axis is only known when run"


OPERATORS = {
    "Softmax": Operator(_softmax, _why_not_softmax),
    "LogSoftmax": Operator(_softmax, _why_not_softmax),
    "CumSum": Operator(_cumulative, _why_not_cumulative),
}
