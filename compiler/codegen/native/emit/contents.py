"""Integers that follow from shapes: what small tensors hold, as C expressions in the entry's sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from ....ir.constants import constant
from .base import Entry, Size, divided, times

_LIMIT = 64
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)

Contents = tuple[Size, ...]


def contents(value: ir.Value | None, entry: Entry) -> Contents | None:
    """The elements of an integer tensor of up to 64, in order; None if they depend on more than shapes."""
    if value is None or value.dtype not in _INTEGERS or value.shape is None:
        return None
    array = constant(value, limit=_LIMIT)
    if array is not None:
        return tuple(int(number) for number in array.reshape(-1))
    node = value.producer()
    follow = None if node is None or node.domain != "" else _FOLLOW.get(node.op_type)
    if node is None or follow is None or not value.shape.is_static() or len(value.shape) > 1:
        return None
    if math.prod(d for d in value.shape if isinstance(d, int)) > _LIMIT:
        return None
    return follow(node, entry)


def single(value: ir.Value | None, entry: Entry) -> Size | None:
    """The only element of an integer tensor, as ``contents``."""
    known = contents(value, entry)
    return known[0] if known is not None and len(known) == 1 else None


def clamped(size: Size, low: Size, high: Size) -> Size:
    """``size`` kept between ``low`` and ``high``."""
    if isinstance(size, int) and isinstance(low, int) and isinstance(high, int):
        return max(low, min(size, high))
    if low == 0 and (size == 0 or size == high):
        return size
    return f"max64({low}, min64({size}, {high}))"


def added(a: Size, b: Size) -> Size:
    """The sum."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if 0 in (a, b):
        return b if a == 0 else a
    if isinstance(b, int) and b < 0:
        return f"({a} - {-b})"
    return f"({a} + {b})"


def subtracted(a: Size, b: Size) -> Size:
    """The difference."""
    if a == b:
        return 0
    return added(a, -b) if isinstance(b, int) else f"({a} - {b})"


def _shape(node: ir.Node, entry: Entry) -> Contents | None:
    if node.inputs[0] is None:
        return None
    sizes = entry.sizes(node.inputs[0])
    end = node.attributes.get("end")
    return sizes[node.attributes.get_int("start", 0) : None if end is None else end.as_int()]


def _size(node: ir.Node, entry: Entry) -> Contents | None:
    return None if node.inputs[0] is None else (times(*entry.sizes(node.inputs[0])),)


def _same(node: ir.Node, entry: Entry) -> Contents | None:
    return contents(node.inputs[0], entry)


def _gathered(node: ir.Node, entry: Entry) -> Contents | None:
    data, places = contents(node.inputs[0], entry), contents(node.inputs[1], entry)
    if data is None or places is None:
        return None
    if not all(isinstance(p, int) and -len(data) <= p < len(data) for p in places):
        return None
    return tuple(data[p] for p in places if isinstance(p, int))


def _sliced(node: ir.Node, entry: Entry) -> Contents | None:
    data = contents(node.inputs[0], entry)
    bounds = [single(v, entry) for v in node.inputs[1:]]
    if data is None or not all(isinstance(b, int) for b in bounds):
        return None
    begin, end, step = bounds[0], bounds[1], bounds[3] if len(bounds) > 3 else 1
    assert isinstance(begin, int) and isinstance(end, int) and isinstance(step, int)
    if step < 0:
        return None
    return data[begin:end:step]


def _joined(node: ir.Node, entry: Entry) -> Contents | None:
    parts = [contents(v, entry) for v in node.inputs]
    known = [p for p in parts if p is not None]
    return tuple(s for p in known for s in p) if len(known) == len(parts) else None


def _computed(compute: Callable[[Size, Size], Size | None]) -> Callable[[ir.Node, Entry], Contents | None]:
    def follow(node: ir.Node, entry: Entry) -> Contents | None:
        parts = [p for v in node.inputs if (p := contents(v, entry)) is not None]
        if len(parts) != 2 or len(node.inputs) != 2:
            return None
        length = max(map(len, parts)) if all(parts) else 0
        a, b = (p * length if len(p) == 1 else p for p in parts)
        found = [compute(x, y) for x, y in zip(a, b, strict=True)] if len(a) == len(b) else [None]
        known = [s for s in found if s is not None]
        return tuple(known) if len(known) == len(found) else None

    return follow


def _quotient(a: Size, b: Size) -> Size | None:
    if isinstance(a, int) and isinstance(b, int):
        return int(a / b) if b and abs(a) < 2**50 else None
    if b == 1:
        return a
    return divided(a, b) if isinstance(b, int) and b > 0 else None


def _extreme(name: str, choose: Callable[[Sequence[int]], int]) -> Callable[[Size, Size], Size | None]:
    def compute(a: Size, b: Size) -> Size | None:
        if isinstance(a, int) and isinstance(b, int):
            return choose((a, b))
        return f"{name}({a}, {b})"

    return compute


def _product(node: ir.Node, entry: Entry) -> Contents | None:
    data = contents(node.inputs[0], entry)
    if data is None or node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return None
    return (times(*data),)


def _times(a: Size, b: Size) -> Size | None:
    negative = any(isinstance(s, int) and s < 0 for s in (a, b))
    return None if negative and not (isinstance(a, int) and isinstance(b, int)) else times(a, b)


_FOLLOW: dict[str, Callable[[ir.Node, Entry], Contents | None]] = {
    "Shape": _shape, "Size": _size, "Gather": _gathered, "Slice": _sliced, "Concat": _joined,
    "Cast": _same, "Identity": _same, "Squeeze": _same, "Unsqueeze": _same, "Reshape": _same,
    "Add": _computed(added), "Sub": _computed(subtracted), "Mul": _computed(_times),
    "Div": _computed(_quotient), "Max": _computed(_extreme("max64", max)),
    "Min": _computed(_extreme("min64", min)), "ReduceProd": _product,
}  # fmt: skip
