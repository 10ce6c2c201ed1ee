"""Elements moved without being looked at: joined, repeated, padded, cut along a diagonal."""

from __future__ import annotations

import onnx_ir as ir

from ....ir.constants import constant
from ..views import cut
from .base import CTYPES, Entry, Operator, Size, View, times
from .contents import added, contents
from .copies import copied
from .expressions import literal
from .fills import emit_contents
from .gathers import index_of
from .loops import SMALL, loop, names_of, offset, over_rows, written


def _concat(node: ir.Node, entry: Entry) -> None:
    if contents(node.outputs[0], entry) is not None:
        emit_contents(node, entry)
        return
    parts = [entry.view(value) for value in node.inputs if value is not None]
    target = entry.new(node.outputs[0])
    axis = node.attributes.get_int("axis", 0) % len(target.shape)
    begin: Size = 0
    blocks = []
    for part in parts:
        if part.shape[axis] != 0:
            blocks.append(copied(part, cut(target, axis, begin, part.shape[axis])))
        begin = added(begin, part.shape[axis])
    entry.step(node, "\n".join(blocks))


def _tile(node: ir.Node, entry: Entry) -> None:
    assert node.inputs[0] is not None
    source, sizes = entry.view(node.inputs[0]), entry.sizes(node.outputs[0])
    if sizes == source.shape:
        entry.alias(node.outputs[0], source)
        return
    target = entry.new(node.outputs[0])
    repeats = contents(node.inputs[1], entry)
    if repeats is None:
        assert node.inputs[1] is not None
        counts = entry.view(node.inputs[1])
        repeats = tuple(f"{counts.pointer}[{axis}]" for axis in range(len(source.shape)))
    shape: list[Size] = []
    strides: list[Size] = []
    for repeat, size, stride in zip(repeats, source.shape, source.strides, strict=True):
        shape += [repeat, size]
        strides += [0, stride]
    steps: list[Size] = []
    for size, stride in zip(source.shape, target.strides, strict=True):
        steps += [times(size, stride), stride]
    entry.step(
        node,
        copied(
            View(source.pointer, source.ctype, tuple(shape), tuple(strides)),
            View(target.pointer, target.ctype, tuple(shape), tuple(steps)),
        ),
    )


def _trilu(node: ir.Node, entry: Entry) -> None:
    assert node.inputs[0] is not None
    source = entry.view(node.inputs[0])
    diagonal = _diagonal(node, entry)
    target = entry.new(node.outputs[0])
    names = names_of(len(target.shape))
    row, column = names[-2], names[-1]
    kept = ">=" if node.attributes.get_int("upper", 1) else "<="
    x = f"{source.pointer}[{index_of(offset(names, source.strides))}]"
    y = f"{target.pointer}[{index_of(offset(names, target.strides))}]"
    line = f"{y} = {column} - {row} {kept} {diagonal} ? {x} : 0;"
    entry.step(node, over_rows(target.shape, [line], SMALL))


def _diagonal(node: ir.Node, entry: Entry) -> str:
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None:
        return "0"
    known = constant(value, limit=1)
    return f"{entry.view(value).pointer}[0]" if known is None else str(int(known.reshape(())))


def _pad(node: ir.Node, entry: Entry) -> None:
    assert node.inputs[0] is not None and node.outputs[0].dtype is not None
    source = entry.view(node.inputs[0])
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        fill = literal(0, node.outputs[0].dtype)
    else:
        known = constant(value, limit=1)
        fill = (
            f"{entry.view(value).pointer}[0]"
            if known is None
            else literal(known.reshape(()).item(), node.outputs[0].dtype)
        )
    target = entry.new(node.outputs[0])
    entry.step(node, loop(target.shape, [written(target)], lambda y: [f"{y[0]} = {fill};"]))
    inner, cropped = target, source
    for axis, (before, after) in _pads(node).items():
        inner = cut(inner, axis, max(before, 0), added(source.shape[axis], min(before, 0) + min(after, 0)))
        cropped = cut(cropped, axis, max(-before, 0), inner.shape[axis])
    entry.step(node, copied(cropped, inner))


def _pads(node: ir.Node) -> dict[int, tuple[int, int]]:
    """Elements in front of and behind every axis that is padded, negative where it is cut."""
    pads = constant(node.inputs[1])
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    assert pads is not None and shape is not None
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    places = range(len(shape)) if axes is None else [int(a) % len(shape) for a in axes]
    half = len(pads) // 2
    return {axis: (int(a), int(b)) for axis, a, b in zip(places, pads[:half], pads[half:], strict=True)}


def _known_dtype(node: ir.Node) -> str | None:
    dtype = node.outputs[0].dtype
    return None if dtype in CTYPES else f"it moves {None if dtype is None else dtype.name.lower()}"


def _why_not_pad(node: ir.Node) -> str | None:
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant":
        return f"it pads by {mode!r}"
    given = [v for v in (node.inputs[1], *node.inputs[3:4]) if v is not None]
    if any(constant(v) is None for v in given):
        return "how much it pads is only known when run"
    return _known_dtype(node)


OPERATORS = {
    "Concat": Operator(_concat, _known_dtype),
    "Tile": Operator(_tile, _known_dtype),
    "Trilu": Operator(_trilu, _known_dtype),
    "Pad": Operator(_pad, _why_not_pad),
}
