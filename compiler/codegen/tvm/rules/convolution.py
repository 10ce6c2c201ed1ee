"""Windows that slide over an image of any number of dimensions: convolutions and pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from .. import reducers
from ..lowering import Lowering, Rule, given
from .products import accumulator
from .reductions import reduced, scaled_by


def ints(node: ir.Node, name: str, count: int, default: int) -> list[int]:
    """An attribute with a number for each dimension."""
    attribute = node.attributes.get(name)
    return [default] * count if attribute is None else [int(v) for v in attribute.as_ints()]


def pads(b: Lowering, node: ir.Node, image: Sequence[Any], window: Sequence[int]) -> list[tuple[Any, Any]]:
    """Before and behind, for each dimension. ``window``: how far a window reaches."""
    rank, mode = len(image), node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        given_pads = ints(node, "pads", 2 * rank, 0)
        return [(given_pads[d], given_pads[d + rank]) for d in range(rank)]
    if mode == "VALID":
        return [(0, 0)] * rank
    found = []
    for size, reach, stride in zip(image, window, ints(node, "strides", rank, 1), strict=True):
        missing = ((size + stride - 1) // stride - 1) * stride + reach - size
        total = max(missing, 0) if isinstance(missing, int) else b.tirx.max(missing, 0)
        half = total // 2
        found.append((half, total - half) if mode == "SAME_UPPER" else (total - half, half))
    return found


def count(b: Lowering, size: Any, pad: tuple[Any, Any], reach: int, stride: int, up: bool = False) -> Any:
    """How many windows fit; with ``up``, one that hangs over counts unless it begins beyond the image."""
    room = size + pad[0] + pad[1] - reach
    if not up:
        return b.simplified(room // stride + 1)
    windows = (room + stride - 1) // stride + 1
    over = (windows - 1) * stride >= size + pad[0]
    if isinstance(over, bool):
        return windows - over
    return b.simplified(b.tirx.Select(over, windows - 1, windows))


def inside(b: Lowering, places: Sequence[Any], sizes: Sequence[Any]) -> Any:
    """Whether an index lies in the image; None if it surely does."""
    found = None
    for place, size in zip(places, sizes, strict=True):
        here = b.tirx.And(place >= 0, place < size)
        found = here if found is None else b.tirx.And(found, here)
    return found


def padded(b: Lowering, x: Any, around: list[tuple[Any, Any]], fill: Any) -> Any:
    """The image with a frame, as a tensor expression."""
    widths = [b.size(p) for pair in around for p in pair]
    if all(isinstance(p, int) and p == 0 for p in widths):
        return x
    image = list(x.shape[2:])
    shape = [*x.shape[:2], *(s + p + q for s, (p, q) in zip(image, around, strict=True))]

    def element(*i: Any) -> Any:
        at = [p - before for p, (before, _) in zip(i[2:], around, strict=True)]
        return b.tirx.if_then_else(inside(b, at, image), x(*i[:2], *at), fill)

    return b.te.compute(shape, element, name="pad")


def _conv(b: Lowering, node: ir.Node) -> Any:
    source, weight, bias = b.value(node.inputs[0]), b.value(node.inputs[1]), given(node, 2)
    image, kernel = b.shape(source)[2:], b.shape(weight)[2:]
    rank, groups = len(image), node.attributes.get_int("group", 1)
    strides, dilations = ints(node, "strides", rank, 1), ints(node, "dilations", rank, 1)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    around = pads(b, node, image, reach)
    sizes = [count(b, s, p, r, t) for s, p, r, t in zip(image, around, reach, strides, strict=True)]
    channels, inner = b.shape(weight)[:2]

    def conv(x: Any, w: Any, out: Any, frame: Any, *c: Any) -> Any:
        wide = accumulator(x.dtype)
        framed = padded(b, x, [(frame[2 * d], frame[2 * d + 1]) for d in range(rank)], b.const(0, x.dtype))
        axes = [b.te.reduce_axis((0, k), f"k{d}") for d, k in enumerate(kernel)]
        r = b.te.reduce_axis((0, inner), "r")

        def element(n: Any, o: Any, *at: Any) -> Any:
            places = [p * s + k * d for p, s, k, d in zip(at, strides, axes, dilations, strict=True)]
            channel = r if groups == 1 else o // (channels // groups) * inner + r
            product = framed(n, channel, *places).astype(wide) * w(o, r, *axes).astype(wide)
            return b.te.sum(product, axis=[r, *axes])

        found = b.te.compute([x.shape[0], channels, *out], element, name="conv")
        if not c and wide == x.dtype:
            return found

        def finished(*i: Any) -> Any:
            value = found(*i)
            return (value + c[0](i[1]).astype(wide) if c else value).astype(x.dtype)

        return b.te.compute(found.shape, finished, name="bias")

    frame = [p for pair in around for p in pair]
    extra = [] if bias is None else [b.value(bias)]
    return b.compute(conv, source, weight, b.prims(sizes), b.prims(frame), *extra)


def _conv_transpose(b: Lowering, node: ir.Node) -> Any:
    source, weight, bias = b.value(node.inputs[0]), b.value(node.inputs[1]), given(node, 2)
    image, kernel = b.shape(source)[2:], b.shape(weight)[2:]
    rank, groups = len(image), node.attributes.get_int("group", 1)
    strides, dilations = ints(node, "strides", rank, 1), ints(node, "dilations", rank, 1)
    more = ints(node, "output_padding", rank, 0)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    asked = "output_shape" in node.attributes
    full = [(s - 1) * t + r + m for s, t, r, m in zip(image, strides, reach, more, strict=True)]
    sizes = ints(node, "output_shape", rank, 0)[-rank:]
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode.startswith("SAME") and not asked:
        sizes = [s * t for s, t in zip(image, strides, strict=True)]
    if any(not isinstance(s, int) or s for s in sizes):
        total = [f - s for f, s in zip(full, sizes, strict=True)]
        begins = [t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total]
    else:
        begins = ints(node, "pads", 2 * rank, 0)[:rank]
        ends = ints(node, "pads", 2 * rank, 0)[rank:]
        sizes = [f - p - q for f, p, q in zip(full, begins, ends, strict=True)]
    inner, outer = b.shape(weight)[:2]

    def conv_transpose(x: Any, w: Any, out: Any, start: Any, *c: Any) -> Any:
        wide = accumulator(x.dtype)
        axes = [b.te.reduce_axis((0, k), f"k{d}") for d, k in enumerate(kernel)]
        r = b.te.reduce_axis((0, inner // groups), "r")

        def element(n: Any, o: Any, *at: Any) -> Any:
            before = [p + s - k * d for p, s, k, d in zip(at, start, axes, dilations, strict=True)]
            places = [b.tirx.floordiv(p, t) for p, t in zip(before, strides, strict=True)]
            hit = inside(b, places, x.shape[2:])
            for p, t in zip(before, strides, strict=True):
                hit = b.tirx.And(hit, b.tirx.floormod(p, t) == 0)
            channel = o // outer * (inner // groups) + r
            value = b.tirx.if_then_else(hit, x(n, channel, *places), b.const(0, x.dtype))
            product = value.astype(wide) * w(channel, o % outer, *axes).astype(wide)
            return b.te.sum(product, axis=[r, *axes])

        found = b.te.compute([x.shape[0], outer * groups, *out], element, name="conv_transpose")

        def finished(*i: Any) -> Any:
            return (found(*i) + c[0](i[1]).astype(wide) if c else found(*i)).astype(x.dtype)

        return b.te.compute(found.shape, finished, name="bias") if c or wide != x.dtype else found

    extra = [] if bias is None else [b.value(bias)]
    return b.compute(conv_transpose, source, weight, b.prims(sizes), b.prims(begins), *extra)


def _pool(b: Lowering, node: ir.Node) -> Any:
    source, greatest = b.value(node.inputs[0]), node.op_type == "MaxPool"
    image = b.shape(source)[2:]
    rank = len(image)
    kernel = ints(node, "kernel_shape", rank, 1)
    strides, dilations = ints(node, "strides", rank, 1), ints(node, "dilations", rank, 1)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    around, up = pads(b, node, image, reach), bool(node.attributes.get_int("ceil_mode", 0))
    sizes = [count(b, s, p, r, t, up) for s, p, r, t in zip(image, around, reach, strides, strict=True)]
    frame_counts = bool(node.attributes.get_int("count_include_pad", 0))

    def pool(x: Any, out: Any, frame: Any) -> Any:
        wide = accumulator(x.dtype)
        axes = [b.te.reduce_axis((0, k), f"k{d}") for d, k in enumerate(kernel)]
        highest = reducers.extreme(b.te, "max", b.cpu is None)
        worst = reducers.least(wide) if greatest else b.const(0, wide)

        def places(at: Sequence[Any]) -> list[Any]:
            return [
                p * s + k * d - frame[2 * n]
                for n, (p, s, k, d) in enumerate(zip(at, strides, axes, dilations, strict=True))
            ]

        def taken(*i: Any) -> Any:
            at = places(i[2:])
            value = b.tirx.if_then_else(inside(b, at, x.shape[2:]), x(*i[:2], *at).astype(wide), worst)
            return highest(value, axis=axes) if greatest else b.te.sum(value, axis=axes)

        found = b.te.compute([*x.shape[:2], *out], taken, name="pool")
        if greatest:
            return (
                found if wide == x.dtype else b.te.compute(found.shape, lambda *i: found(*i).astype(x.dtype))
            )

        def covered(*at: Any) -> Any:
            total: Any = b.tirx.const(1, "int64")
            for n, (p, size) in enumerate(zip(at, x.shape[2:], strict=True)):
                before, behind = (frame[2 * n], frame[2 * n + 1]) if frame_counts else (0, 0)
                begin = p * strides[n] - frame[2 * n]
                # the places of a window that lie within, by their number: dilated ones are apart
                first = b.tirx.max(b.tirx.ceildiv(-before - begin, dilations[n]), 0)
                last = b.tirx.min(b.tirx.ceildiv(size + behind - begin, dilations[n]), kernel[n])
                total = total * (last - first)
            return total

        def mean(*i: Any) -> Any:
            return (found(*i) / covered(*i[2:]).astype(wide)).astype(x.dtype)

        return b.te.compute(found.shape, mean, name="mean")

    return b.compute(pool, source, b.prims(sizes), b.prims([p for pair in around for p in pair]))


def _only_values(node: ir.Node) -> str | None:
    wanted = [o for o in node.outputs[1:] if o.uses() or o.is_graph_output()]
    return "it is asked for the places of its maxima" if wanted else None


def _global(kind: str) -> Rule:
    def lower(b: Lowering, node: ir.Node) -> Any:
        source = b.value(node.inputs[0])
        shape = b.shape(source)
        axes = list(range(2, len(shape)))
        found = reduced(b, source, axes, True, kind)
        if kind == "max":
            return found
        total = 1
        for a in axes:
            total = total * shape[a]
        return scaled_by(b, found, total)

    return Rule(lower)


def _known_window(node: ir.Node) -> str | None:
    weight = node.inputs[1]
    dims = () if weight is None or weight.shape is None else weight.shape
    return None if dims and all(isinstance(d, int) for d in dims) else "the sizes of its weight are not known"


RULES: dict[str, Rule] = {
    "Conv": Rule(_conv, _known_window),
    "ConvTranspose": Rule(_conv_transpose, _known_window),
    "MaxPool": Rule(_pool, _only_values),
    "AveragePool": Rule(_pool),
    "GlobalAveragePool": _global("sum"),
    "GlobalMaxPool": _global("max"),
}
