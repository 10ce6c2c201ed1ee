"""Emitting Gather: rows of an embedding, plain or unpacked from the weight that the output layer reads too."""

from __future__ import annotations

import onnx_ir as ir

from ..views import cut
from .base import Entry, Operator, Size, View, times
from .views import integers, required

_OUTSIDE = "an index is outside of its table"


def _gather(node: ir.Node, entry: Entry) -> None:
    data, indices = required(node, 0), required(node, 1)
    rank = len(data.shape or ())
    axis = node.attributes.get_int("axis", 0) % rank
    known = integers(indices)
    if known is not None and indices.shape is not None and len(indices.shape) == 0:
        _chosen(node, entry, axis, known[0])
    elif axis == 0 and rank == 2 and entry.is_packed(data):
        _unpacked(node, entry)
    else:
        _copied(node, entry, axis)


def _chosen(node: ir.Node, entry: Entry, axis: int, index: int) -> None:
    """One constant index: the axis is cut away."""
    view = entry.view(required(node, 0))
    size = view.shape[axis]
    begin: Size = index if index >= 0 else size + index if isinstance(size, int) else f"({size} - {-index})"
    one = cut(view, axis, begin, 1)
    shape = tuple(s for k, s in enumerate(one.shape) if k != axis)
    strides = tuple(s for k, s in enumerate(one.strides) if k != axis)
    entry.alias(node.outputs[0], View(one.pointer, one.ctype, shape, strides))


def _index(pointer: str, size: Size) -> list[str]:
    return [
        f"int64_t at = {pointer}[i];",
        f"at += at < 0 ? {size} : 0;",
        f"if (at < 0 || at >= {size}) {{",
        f'    fail(run, "{_OUTSIDE}");',
        "    at = 0;",
        "}",
    ]


def _unpacked(node: ir.Node, entry: Entry) -> None:
    indices = entry.contiguous(required(node, 1))
    where, weight = entry.packed([required(node, 0)])
    y = entry.new(node.outputs[0])
    count = times(*indices.shape)
    body = [
        f"static const linear_part part = {{{weight.rows}, {weight.format}, {weight.group}}};",
        f"range part_of = share(w, {count}, 1);",
        "for (int64_t i = part_of.begin; i < part_of.end; i++) {",
        *(f"    {line}" for line in _index(indices.pointer, weight.rows)),
        f"    unpack_row(&part, {weight.columns}, {where}, at, {y.pointer} + i * {weight.columns});",
        "}",
    ]
    entry.step(node, _block(body))


def _copied(node: ir.Node, entry: Entry, axis: int) -> None:
    """Blocks of the axes behind ``axis``, for every index of every block in front of it."""
    data = entry.contiguous(required(node, 0))
    indices = entry.contiguous(required(node, 1))
    y = entry.new(node.outputs[0])
    outer, inner = times(*data.shape[:axis]), times(*data.shape[axis + 1 :])
    count, size = times(*indices.shape), data.shape[axis]
    place = "row"
    body = [f"range part = share(w, {times(outer, count)}, 1);",
            "for (int64_t row = part.begin; row < part.end; row++) {"]  # fmt: skip
    if outer == 1:
        body.append("    const int64_t i = row;")
        place = "at"
    else:
        body.append(f"    const int64_t i = row % {count};")
        place = f"(row / {count} * {size} + at)"
    body += [f"    {line}" for line in _index(indices.pointer, size)]
    body.append(
        f"    memcpy({y.pointer} + row * {inner}, {data.pointer} + {place} * {inner}, sizeof *{y.pointer} * {inner});"
    )
    entry.step(node, _block([*body, "}"]))


def _block(lines: list[str]) -> str:
    return "\n".join(["{", *(f"    {line}" for line in lines), "}"])


OPERATORS = {"Gather": Operator(_gather)}

