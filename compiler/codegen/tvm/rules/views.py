"""The same elements in another shape or order: reshapes, transposes, slices, joins, repeats."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir

from ..lowering import Lowering, Rule, given, normalized
from .integers import unknown_integers
from .products import reshaped


def axes_of(b: Lowering, node: ir.Node, index: int = 1) -> list[int] | None:
    """Axes from an input, or in older opsets from an attribute; None if there are none."""
    value = given(node, index)
    if value is not None:
        found = b.ints(value)
        return None if found is None else [int(a) for a in found]
    attribute = node.attributes.get("axes")
    return None if attribute is None else list(attribute.as_ints())


def _reshape(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    shape = b.wanted(node.outputs[0]) or _target(b, node, b.shape(source))
    return reshaped(b, source, shape)


def _target(b: Lowering, node: ir.Node, own: list[Any]) -> list[Any]:
    target = b.ints(node.inputs[1])
    if target is None:
        return b.runtime_shape(b.value(node.inputs[1]), node.outputs[0])
    if not node.attributes.get_int("allowzero", 0):
        target = [own[i] if isinstance(d, int) and d == 0 else d for i, d in enumerate(target)]
    if -1 in [d for d in target if isinstance(d, int)]:
        place = next(i for i, d in enumerate(target) if isinstance(d, int) and d == -1)
        known = math.prod(d for i, d in enumerate(target) if i != place)
        target[place] = b.simplified(math.prod(own) // known)
    return target


def _flatten(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    own = b.shape(source)
    axis = normalized(node.attributes.get_int("axis", 1), len(own))
    return reshaped(b, source, [b.simplified(math.prod(own[:axis])), b.simplified(math.prod(own[axis:]))])


def _squeeze(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    own, axes = b.shape(source), axes_of(b, node)
    if axes is None:
        gone = {i for i, d in enumerate(own) if isinstance(d, int) and d == 1}
    else:
        gone = {normalized(a, len(own)) for a in axes}
    return reshaped(b, source, [d for i, d in enumerate(own) if i not in gone])


def _unsqueeze(b: Lowering, node: ir.Node) -> Any:
    source, axes = b.value(node.inputs[0]), axes_of(b, node) or []
    own = b.shape(source)
    rank = len(own) + len(axes)
    new, left = {normalized(a, rank) for a in axes}, iter(own)
    return reshaped(b, source, [1 if i in new else next(left) for i in range(rank)])


def _transpose(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    rank = len(b.shape(source))
    attribute = node.attributes.get("perm")
    order = list(range(rank))[::-1] if attribute is None else list(attribute.as_ints())
    return transposed(b, source, order)


def transposed(b: Lowering, source: Any, order: list[int]) -> Any:
    """The axes in another order."""
    if order == sorted(order):
        return source
    places = [order.index(axis) for axis in range(len(order))]

    def transpose(x: Any) -> Any:
        return b.te.compute(
            [x.shape[a] for a in order], lambda *i: x(*(i[p] for p in places)), name="transpose"
        )

    return b.compute(transpose, source)


def _slice(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    own = b.shape(source)
    starts, ends, axes, steps = (b.ints(given(node, i)) if given(node, i) else None for i in range(1, 5))
    if starts is None:  # opset 9 and before
        starts, ends = (list(node.attributes[name].as_ints()) for name in ("starts", "ends"))
        axes = list(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None
    assert ends is not None
    axes = list(range(len(starts))) if axes is None else [normalized(int(a), len(own)) for a in axes]
    steps = [1] * len(starts) if steps is None else [int(s) for s in steps]
    begins: list[Any] = [0] * len(own)
    strides, sizes = [1] * len(own), list(own)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        begins[axis], sizes[axis] = _stretch(b, own[axis], start, end, step)
        strides[axis] = step
    return sliced(b, source, begins, b.wanted(node.outputs[0]) or sizes, strides)


def _stretch(b: Lowering, size: Any, start: Any, end: Any, step: int) -> tuple[Any, Any]:
    """Where a slice begins, and how many it takes."""
    if all(isinstance(v, int) for v in (size, start, end)):
        taken = range(size)[slice(start, end if step > 0 or end >= -size else None, step)]
        return (taken.start if len(taken) else 0), len(taken)
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first, last = (_clamped(b, v, size, low, high) for v in (start, end))
    count = (last - first + step - 1) // step if step > 0 else (first - last - step - 1) // -step
    return first, b.simplified(b.tirx.max(count, b.tirx.const(0, "int64")))


def _clamped(b: Lowering, place: Any, size: Any, low: Any, high: Any) -> Any:
    if isinstance(place, int):
        if place <= -(2**31) + 1:
            return low
        if place >= 2**31 - 1:
            return high
        if place == 0 and low == 0:
            return 0
        place = size + place if place < 0 else b.tirx.const(place, "int64")
    return b.simplified(b.tirx.max(b.tirx.min(place, high), low))


def sliced(b: Lowering, source: Any, begins: list[Any], sizes: list[Any], strides: list[int]) -> Any:
    """Elements from ``begins`` on, ``sizes`` of them along each axis."""

    def cut(x: Any, at: Any, shape: Any) -> Any:
        return b.te.compute(
            shape, lambda *i: x(*(p * s + a for p, s, a in zip(i, strides, at, strict=True))), name="slice"
        )

    return b.compute(cut, source, b.prims(begins), b.prims(sizes), name="slice")


def _split(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    own = b.shape(source)
    axis = normalized(node.attributes.get_int("axis", 0), len(own))
    count = len(node.outputs)
    sizes = b.ints(given(node, 1)) if given(node, 1) is not None else None
    if sizes is None and "split" in node.attributes:
        sizes = list(node.attributes["split"].as_ints())
    if sizes is None:
        part = -(-own[axis] // count)
        sizes = [part] * (count - 1) + [own[axis] - part * (count - 1)]
    found, begin = [], 0
    for size in sizes:
        begins: list[Any] = [0] * len(own)
        begins[axis] = begin
        found.append(sliced(b, source, begins, [*own[:axis], size, *own[axis + 1 :]], [1] * len(own)))
        begin = begin + size
    return found


def _concat(b: Lowering, node: ir.Node) -> Any:
    parts = b.values(node)
    return joined(b, parts, normalized(node.attributes.get_int("axis", 0), len(b.shape(parts[0]))))


def joined(b: Lowering, parts: list[Any], axis: int) -> Any:
    """The parts behind each other along an axis."""
    parts = [p for p in parts if b.shape(p)[axis] != 0] or parts[:1]
    if len(parts) == 1:
        return parts[0]

    def concat(*tensors: Any) -> Any:
        ends = [tensors[0].shape[axis]]
        for t in tensors[1:]:
            ends.append(ends[-1] + t.shape[axis])
        shape = [*tensors[0].shape[:axis], ends[-1], *tensors[0].shape[axis + 1 :]]

        def element(*i: Any) -> Any:
            value = tensors[-1](*i[:axis], i[axis] - ends[-2], *i[axis + 1 :])
            for place in range(len(tensors) - 2, -1, -1):
                begin = ends[place - 1] if place else 0
                own = tensors[place](*i[:axis], i[axis] - begin, *i[axis + 1 :])
                value = b.tirx.if_then_else(i[axis] < ends[place], own, value)
            return value

        return b.te.compute(shape, element, name="concat")

    return b.compute(concat, *parts)


def _tile(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    repeats = b.ints(node.inputs[1]) or []
    shape = b.wanted(node.outputs[0]) or [s * r for s, r in zip(b.shape(source), repeats, strict=True)]

    def tile(x: Any, sizes: Any) -> Any:
        return b.te.compute(
            sizes,
            lambda *i: x(*(b.tirx.indexmod(p, s) for p, s in zip(i, x.shape, strict=True))),
            name="tile",
        )

    return b.compute(tile, source, b.prims(shape)) if shape else source


def _expand(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    shape = b.wanted(node.outputs[0])
    if shape is None:
        target = b.ints(node.inputs[1])
        target = b.runtime_shape(b.value(node.inputs[1]), None) if target is None else target
        shape = b.broadcast([b.shape(source), target])
        b.learn(node.outputs[0], shape)
    return expanded(b, source, shape)


def expanded(b: Lowering, source: Any, shape: list[Any]) -> Any:
    """Sizes of 1 repeated until the shape is reached."""
    from .broadcast import read

    def expand(x: Any, sizes: Any) -> Any:
        return b.te.compute(sizes, lambda *i: read(b, x, i, sizes), name="expand")

    return b.compute(expand, source, b.prims(shape)) if shape else source


def _depth_to_space(b: Lowering, node: ir.Node) -> Any:
    source, side = b.value(node.inputs[0]), node.attributes.get_int("blocksize", 1)
    n, c, h, w = b.shape(source)
    if node.attributes.get_string("mode", "DCR") == "DCR":
        parts, order = [n, side, side, c // (side * side), h, w], [0, 3, 4, 1, 5, 2]
    else:
        parts, order = [n, c // (side * side), side, side, h, w], [0, 1, 4, 2, 5, 3]
    moved = transposed(b, reshaped(b, source, parts), order)
    return reshaped(b, moved, [n, c // (side * side), h * side, w * side])


def _space_to_depth(b: Lowering, node: ir.Node) -> Any:
    source, side = b.value(node.inputs[0]), node.attributes.get_int("blocksize", 1)
    n, c, h, w = b.shape(source)
    cut = reshaped(b, source, [n, c, h // side, side, w // side, side])
    across = node.attributes.get_string("mode", "DCR") == "CRD"
    moved = transposed(b, cut, [0, 1, 3, 5, 2, 4] if across else [0, 3, 5, 1, 2, 4])
    return reshaped(b, moved, [n, c * side * side, h // side, w // side])


RULES: dict[str, Rule] = {
    "Reshape": Rule(_reshape),
    "Flatten": Rule(_flatten),
    "Squeeze": Rule(_squeeze, unknown_integers(1)),
    "Unsqueeze": Rule(_unsqueeze, unknown_integers(1)),
    "Transpose": Rule(_transpose),
    "Slice": Rule(_slice, unknown_integers(1, 2, 3, 4)),
    "Split": Rule(_split, unknown_integers(1)),
    "Concat": Rule(_concat),
    "Tile": Rule(_tile, unknown_integers(1)),
    "Expand": Rule(_expand),
    "DepthToSpace": Rule(_depth_to_space),
    "SpaceToDepth": Rule(_space_to_depth),
}
