"""Operators that see memory differently: reshapes, transposes, slices, splits, expansions."""

from __future__ import annotations

import onnx_ir as ir

from ....ir.constants import constant, is_constant
from ..views import contiguous, cut, expanded, reshaped, transposed
from .base import Entry, Operator, Size, View
from .loops import aligned

_END = 2**31 - 1


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """The node's input, None if it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def required(node: ir.Node, index: int) -> ir.Value:
    """The node's input, which its operator demands."""
    value = input_of(node, index)
    assert value is not None
    return value


def integers(value: ir.Value | None) -> list[int] | None:
    """The integers of a constant; None if it varies or is left out."""
    array = constant(value)
    return None if array is None else [int(v) for v in array.reshape(-1)]


def _reshape(node: ir.Node, entry: Entry) -> None:
    source, target = required(node, 0), node.outputs[0]
    shape = entry.sizes(target)
    view = reshaped(entry.view(source), shape)
    if view is None:
        copy = entry.contiguous(source)
        view = contiguous(copy.pointer, copy.ctype, shape)
    entry.alias(target, view)


def _identity(node: ir.Node, entry: Entry) -> None:
    entry.alias(node.outputs[0], entry.view(required(node, 0)))


def _transpose(node: ir.Node, entry: Entry) -> None:
    view = entry.view(required(node, 0))
    order = node.attributes.get_ints("perm", list(reversed(range(len(view.shape)))))
    entry.alias(node.outputs[0], transposed(view, order))


def _expand(node: ir.Node, entry: Entry) -> None:
    view, shape = entry.view(required(node, 0)), entry.sizes(node.outputs[0])
    missing = len(shape) - len(view.shape)
    if all(old == new or isinstance(old, int) for old, new in zip(view.shape, shape[missing:], strict=True)):
        entry.alias(node.outputs[0], expanded(view, shape))
    else:
        entry.alias(node.outputs[0], View(view.pointer, view.ctype, shape, aligned(view, shape)))


def _slice(node: ir.Node, entry: Entry) -> None:
    view, shape = entry.view(required(node, 0)), entry.sizes(node.outputs[0])
    begins = integers(input_of(node, 1))
    count = len(begins) if begins is not None else 1
    axes = integers(input_of(node, 3)) or list(range(count))
    steps = integers(input_of(node, 4)) or [1] * count
    for place, axis in enumerate(axes):
        size, kept = view.shape[axis], shape[axis]
        begin: Size
        if begins is not None:
            begin = _first(begins[place], size, steps[place])
        else:
            start = entry.contiguous(required(node, 1)).pointer
            wrapped = f"{start}[{place}] + ({start}[{place}] < 0 ? {size} : 0)"
            begin = f"min64(max64({wrapped}, 0), {size} - {kept})"
        view = cut(view, axis % len(shape), begin, kept, steps[place])
    entry.alias(node.outputs[0], view)


def _first(start: int, size: Size, step: int) -> Size:
    """Index of the first element that a slice takes."""
    least, most = (0, size) if step > 0 else (-1, size - 1 if isinstance(size, int) else f"({size} - 1)")
    if isinstance(size, int) and isinstance(most, int):
        return max(least, min(start + size if start < 0 else start, most))
    if start < 0:
        return f"max64({least}, {size} - {-start})"
    return 0 if start == 0 and step > 0 else most if start >= _END else f"min64({start}, {most})"


def _slice_reason(node: ir.Node) -> str | None:
    for index, what in ((3, "axes"), (4, "steps")):
        value = input_of(node, index)
        if value is not None and not is_constant(value):
            return f"its {what} are not constant"
    if not is_constant(input_of(node, 1)) and integers(input_of(node, 4)) not in (None, [1]):
        return "it steps from a start that is not constant"
    starts = input_of(node, 1)
    if starts is not None and not is_constant(starts) and (starts.shape is None or starts.shape[0] != 1):
        return "its starts are not constant"
    return None


def _split(node: ir.Node, entry: Entry) -> None:
    view = entry.view(required(node, 0))
    axis = node.attributes.get_int("axis", 0) % len(view.shape)
    begin: Size = 0
    for output in node.outputs:
        size = entry.sizes(output)[axis]
        entry.alias(output, cut(view, axis, begin, size))
        both = isinstance(begin, int) and isinstance(size, int)
        begin = begin + size if both else f"({begin} + {size})"  # type: ignore[operator]


_RESHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")

OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(_RESHAPES, Operator(_reshape)),
    "Identity": Operator(_identity),
    "Transpose": Operator(_transpose),
    "Expand": Operator(_expand),
    "Slice": Operator(_slice, _slice_reason),
    "Split": Operator(_split),
}
