"""Frames and sizes of images: Pad in all modes, Resize along each axis in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from ..lowering import Lowering, Rule, given, normalized
from .integers import unknown_integers


def _pad(b: Lowering, node: ir.Node) -> Any:
    source, fill = b.value(node.inputs[0]), given(node, 2)
    own, mode = b.shape(source), node.attributes.get_string("mode", "constant")
    if given(node, 1) is not None:
        amounts = b.ints(node.inputs[1]) or []
    else:
        amounts = list(node.attributes["pads"].as_ints())
    axes = b.ints(given(node, 3)) if given(node, 3) is not None else list(range(len(own)))
    assert axes is not None
    before, behind = [0] * len(own), [0] * len(own)
    for place, axis in enumerate(normalized(int(a), len(own)) for a in axes):
        before[axis], behind[axis] = amounts[place], amounts[place + len(axes)]
    sizes = [b.simplified(s + p + q) for s, p, q in zip(own, before, behind, strict=True)]
    extra = [b.value(fill)] if fill is not None else []
    value = node.attributes.get_float("value", 0.0)

    def pad(x: Any, out: Any, start: Any, *f: Any) -> Any:
        filler = f[0](*[0] * len(f[0].shape)) if f else b.const(value, x.dtype)

        def element(*i: Any) -> Any:
            at = [p - s for p, s in zip(i, start, strict=True)]
            if mode != "constant":
                return x(*(_folded(b, p, s, mode) for p, s in zip(at, x.shape, strict=True)))
            inside = None
            for p, s, first, last in zip(at, x.shape, before, behind, strict=True):
                if first == 0 and last == 0:
                    continue
                here = b.tirx.And(p >= 0, p < s)
                inside = here if inside is None else b.tirx.And(inside, here)
            return x(*at) if inside is None else b.tirx.if_then_else(inside, x(*at), filler)

        return b.te.compute(out, element, name="pad")

    return b.compute(pad, source, b.prims(sizes), b.prims(before), *extra)


def _folded(b: Lowering, place: Any, size: Any, mode: str) -> Any:
    """The place whose element stands at one that lies outside."""
    if mode == "edge":
        return b.tirx.max(b.tirx.min(place, size - 1), 0)
    if mode == "wrap":
        return b.tirx.floormod(place, size)
    period = b.tirx.max(2 * (size - 1), 1)
    inner = b.tirx.floormod(place, period)
    return b.tirx.min(inner, period - inner)


_COORDINATES = ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")


def _resize(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    own = b.shape(source)
    attribute = node.attributes.get("axes")
    chosen = list(attribute.as_ints()) if attribute is not None else list(range(len(own)))
    axes = [normalized(a, len(own)) for a in chosen]
    first = 1 if node.op_type == "Upsample" else 2
    scales, sizes = b.array(given(node, first)), given(node, 3)
    if scales is None and "scales" in node.attributes:
        scales = np.array(node.attributes["scales"].as_floats(), np.float32)
    wanted = b.ints(sizes) if sizes is not None and sizes.shape != ir.Shape([0]) else None
    if wanted is not None:
        wanted = _kept(node, [own[a] for a in axes], wanted)
    for place, axis in enumerate(axes):
        if wanted is not None:
            size, scale = wanted[place], None
        else:
            assert scales is not None
            scale = float(scales[place])
            size = _scaled(b, own[axis], scale)
        if isinstance(size, int) and size == own[axis] and (scale is None or scale == 1):
            continue
        if (
            wanted is not None
            and node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch"
        ):
            scale = _aspect(node, own, axes, b.ints(sizes) or [])
        source = _along(b, node, source, axis, size, scale)
    return source


def _aspect(node: ir.Node, own: list[Any], axes: list[int], asked: list[Any]) -> float:
    ratios = [s / own[a] for s, a in zip(asked, axes, strict=True)]
    larger = node.attributes.get_string("keep_aspect_ratio_policy", "stretch") == "not_larger"
    return float(min(ratios) if larger else max(ratios))


def _kept(node: ir.Node, own: list[Any], asked: list[Any]) -> list[Any]:
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return asked
    ratio = _aspect(node, own, list(range(len(own))), asked)
    return [int(np.floor(ratio * s + 0.5)) for s in own]


def _scaled(b: Lowering, size: Any, scale: float) -> Any:
    if isinstance(size, int):
        return int(np.floor(size * np.float32(scale)))
    if scale == int(scale):
        return b.simplified(size * int(scale))
    return b.tirx.floor(size.astype("float64") * b.tirx.const(scale, "float64")).astype("int64")


def _along(b: Lowering, node: ir.Node, source: Any, axis: int, size: Any, scale: float | None) -> Any:
    """Resized along one axis."""
    mode = node.attributes.get_string("mode", "nearest")
    change = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    change = "asymmetric" if node.op_type == "Upsample" else change

    def resize(x: Any, target: Any) -> Any:
        new, old = target[0], x.shape[axis]
        number = b.tirx.const
        wide = "float32" if x.dtype not in ("float32", "float64") else x.dtype
        factor = (
            number(scale, "float32") if scale is not None else new.astype("float32") / old.astype("float32")
        )

        def source_place(i: Any) -> Any:
            at, half = i.astype("float32"), number(0.5, "float32")
            if change == "asymmetric":
                return at / factor
            if change == "align_corners":
                span = (old - 1).astype("float32") / b.tirx.max(new - 1, 1).astype("float32")
                return b.tirx.Select(new == 1, number(0.0, "float32"), at * span)
            if change == "pytorch_half_pixel":
                return b.tirx.Select(new > 1, (at + half) / factor - half, number(0.0, "float32"))
            if change == "half_pixel_symmetric":
                exact = old.astype("float32") * factor
                moved = (
                    old.astype("float32") * half * (number(1.0, "float32") - new.astype("float32") / exact)
                )
                return moved + (at + half) / factor - half
            return (at + half) / factor - half

        def read(i: Any, place: Any) -> Any:
            inner = b.tirx.max(b.tirx.min(place, old - 1), 0)
            return x(*i[:axis], inner, *i[axis + 1 :])

        def element(*i: Any) -> Any:
            at = source_place(i[axis])
            if mode == "nearest":
                return read(i, _nearest(b, node, at))
            low = b.tirx.floor(at)
            base, part = low.astype("int64"), (at - low).astype(wide)
            taps = _linear if mode == "linear" else _cubic(node)
            weights = taps(b, part, wide)
            begin = 0 if mode == "linear" else -1
            if mode == "cubic" and node.attributes.get_int("exclude_outside", 0) == 1:
                within = [b.tirx.And(base + begin + t >= 0, base + begin + t < old) for t in range(4)]
                weights = [b.tirx.Select(w, v, number(0, wide)) for w, v in zip(within, weights, strict=True)]
                total = weights[0] + weights[1] + weights[2] + weights[3]
                weights = [w / total for w in weights]
            value = read(i, base + begin).astype(wide) * weights[0]
            for t in range(1, len(weights)):
                value = value + read(i, base + begin + t).astype(wide) * weights[t]
            return value.astype(x.dtype)

        shape = [*x.shape[:axis], new, *x.shape[axis + 1 :]]
        return b.te.compute(shape, element, name="resize")

    return b.compute(resize, source, b.prims([size]))


def _nearest(b: Lowering, node: ir.Node, at: Any) -> Any:
    default = "floor" if node.op_type == "Upsample" else "round_prefer_floor"
    half = b.tirx.const(0.5, "float32")
    match node.attributes.get_string("nearest_mode", default):
        case "floor":
            found = b.tirx.floor(at)
        case "ceil":
            found = b.tirx.ceil(at)
        case "round_prefer_ceil":
            found = b.tirx.floor(at + half)
        case _:
            found = b.tirx.ceil(at - half)
    return found.astype("int64")


def _linear(b: Lowering, part: Any, dtype: str) -> list[Any]:
    return [b.tirx.const(1, dtype) - part, part]


def _cubic(node: ir.Node) -> Callable[[Lowering, Any, str], list[Any]]:
    a = node.attributes.get_float("cubic_coeff_a", -0.75)

    def taps(b: Lowering, part: Any, dtype: str) -> list[Any]:
        one = b.tirx.const(1, dtype)

        def near(x: Any) -> Any:
            return ((a + 2) * x - (a + 3)) * x * x + one

        def far(x: Any) -> Any:
            return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

        return [far(part + one), near(part), near(one - part), far(one + one - part)]

    return taps


def _resizable(node: ir.Node) -> str | None:
    if node.attributes.get_int("antialias", 0):
        return "it filters against aliasing"
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if mode not in _COORDINATES:
        return f"its coordinates are {mode}"
    return unknown_integers(3)(node) or _known_scales(node)


def _known_scales(node: ir.Node) -> str | None:
    from ....ir.constants import is_constant

    value = given(node, 1 if node.op_type == "Upsample" else 2)
    return None if value is None or is_constant(value) else "its scales are known only when it runs"


RULES: dict[str, Rule] = {
    "Pad": Rule(_pad, unknown_integers(1, 3)),
    "Resize": Rule(_resize, _resizable),
    "Upsample": Rule(_resize, _resizable),
}
