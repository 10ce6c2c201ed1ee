"""Output sizes that onnx's inference leaves open, from the sizes and integers that are known."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..program import Dim

if TYPE_CHECKING:
    from .symbols import Walk

Dims = list[Dim]


def is_open(dim: Dim) -> bool:
    """Whether the size is unknown, or has only a name that onnx's inference gave it."""
    return dim is None or (isinstance(dim, str) and dim.startswith("unk__"))


def _broadcast(a: Dim, b: Dim) -> Dim:
    if a == b or b == 1:
        return a
    if a == 1 or (isinstance(b, int) and b > 1):
        return b
    if isinstance(a, int) and a > 1:
        return a
    for part, whole in ((a, b), (b, a)):
        # min(n, s) is 1 only where s is (n > 1), so that it broadcasts with s to s
        match = re.fullmatch(r"Min\((\d+), (.+)\)", str(part))
        if match and match[2] == whole and int(match[1]) > 1:
            return whole
    return None


def _broadcast_all(shapes: Sequence[Dims | None]) -> Dims | None:
    known = [s for s in shapes if s is not None]
    if len(known) != len(shapes):
        return None
    rank = max(map(len, known))
    result: Dims = [1] * rank
    for shape in known:
        aligned = [*[1] * (rank - len(shape)), *shape]
        result = [_broadcast(a, b) for a, b in zip(result, aligned, strict=True)]
    return result


def _elementwise(walk: Walk, node: ir.Node) -> Dims | None:
    return _broadcast_all([walk.dims(v) for v in node.inputs])


def _expand(walk: Walk, node: ir.Node) -> Dims | None:
    return _broadcast_all([walk.dims(node.inputs[0]), walk.read(node.inputs[1])])


def _range(walk: Walk, node: ir.Node) -> Dims | None:
    start, limit, step = (walk.read(v) for v in node.inputs)
    counts = start == [0] and step == [1] and limit is not None
    return [max(0, d) if isinstance(d, int) else d for d in limit or ()] if counts else None


def _filled(walk: Walk, node: ir.Node) -> Dims | None:
    return walk.read(node.inputs[0])


def _slice(walk: Walk, node: ir.Node) -> Dims | None:
    dims = walk.dims(node.inputs[0])
    starts, ends, axes, steps = (
        walk.read(node.inputs[i]) if i < len(node.inputs) and node.inputs[i] is not None else None
        for i in range(1, 5)
    )
    if dims is None or starts is None or ends is None:
        return None
    axes = list(range(len(starts))) if axes is None else axes
    if not len(axes) == len(starts) == len(ends) == len(steps or starts):
        return None
    for place, axis in enumerate(axes):
        if not isinstance(axis, int) or not -len(dims) <= axis < len(dims):
            return None
        step = 1 if steps is None else steps[place]
        dims[axis] = _sliced(dims[axis], starts[place], ends[place]) if step == 1 else None
    return dims


def _sliced(size: Dim, start: Dim, end: Dim) -> Dim:
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(size)[start:end])
    if start != 0:
        return None
    if end == size or (isinstance(end, int) and end >= 2**31 - 1):
        return size
    return (
        f"Min({size}, {end})" if isinstance(size, int) and isinstance(end, str) and not is_open(end) else None
    )


def _concat(walk: Walk, node: ir.Node) -> Dims | None:
    shapes = [s for v in node.inputs if (s := walk.dims(v)) is not None]
    axis = node.attributes.get_int("axis", 0)
    ranks = {len(s) for s in shapes}
    if len(shapes) != len(node.inputs) or len(ranks) != 1 or not -min(ranks) <= axis < min(ranks):
        return None
    merged = [next((d for d in column if not is_open(d)), None) for column in zip(*shapes, strict=True)]
    along = [s[axis] for s in shapes]
    merged[axis] = (
        sum(d for d in along if isinstance(d, int)) if all(isinstance(d, int) for d in along) else None
    )
    return merged


def _reshape(walk: Walk, node: ir.Node) -> Dims | None:
    dims, target = walk.dims(node.inputs[0]), walk.read(node.inputs[1])
    if dims is None or target is None:
        return None
    if not node.attributes.get_int("allowzero", 0):
        target = [dims[i] if d == 0 and i < len(dims) else d for i, d in enumerate(target)]
    unknown = [i for i, d in enumerate(target) if d is None or d == -1]
    if len(unknown) == 1:
        target[unknown[0]] = quotient(dims, [d for i, d in enumerate(target) if i != unknown[0]])
    return [None if d == -1 else d for d in target]


def _tile(walk: Walk, node: ir.Node) -> Dims | None:
    dims, repeats = walk.dims(node.inputs[0]), walk.read(node.inputs[1])
    if dims is None or repeats is None or len(dims) != len(repeats):
        return None
    return [quotient([d, r], []) for d, r in zip(dims, repeats, strict=True)]


def _flatten(walk: Walk, node: ir.Node) -> Dims | None:
    dims, axis = walk.dims(node.inputs[0]), node.attributes.get_int("axis", 1)
    return None if dims is None else [quotient(dims[:axis], []), quotient(dims[axis:], [])]


def quotient(dividend: Dims, divisor: Dims) -> Dim:
    """``product(dividend) / product(divisor)``: a size, a symbol or a product of them."""
    above, below = _factors(dividend), _factors(divisor)
    if above is None or below is None or below[0] == 0 or above[0] % below[0] or below[1] - above[1]:
        return None
    number, symbols = above[0] // below[0], sorted((above[1] - below[1]).elements())
    if not symbols or not number:
        return number
    return "*".join(([str(number)] if number != 1 else []) + symbols)


def _factors(dims: Dims) -> tuple[int, Counter[str]] | None:
    number, symbols = 1, Counter[str]()
    for dim in dims:
        for part in dim.split("*") if isinstance(dim, str) else [dim]:
            if isinstance(part, int) or (part is not None and part.isdigit()):
                number *= int(part)
            elif part is None or not part.isidentifier():
                return None
            else:
                symbols[part] += 1
    return number, symbols


_BROADCASTING = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Mean", "Sum", "And", "Or", "Xor", "Equal",
    "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "PRelu", "BitwiseAnd",
    "BitwiseOr", "BitwiseXor",
)  # fmt: skip

DIMS: dict[str, Callable[[Walk, ir.Node], Dims | None]] = {
    **dict.fromkeys(_BROADCASTING, _elementwise),
    "Expand": _expand, "Range": _range, "ConstantOfShape": _filled, "Slice": _slice, "Concat": _concat,
    "Reshape": _reshape, "Flatten": _flatten, "Tile": _tile,
}  # fmt: skip
