"""Attention: the standard operator, the one over a KV cache, and rotary embeddings."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import onnx_ir as ir

from .. import flash, tensor_cores
from ..indices import checked
from ..kernels import cuda_cached
from ..kernels.cuda_attention import Heads
from ..lowering import Lowering, Rule, given
from . import functions as f
from .broadcast import read
from .elementwise import mapped
from .normalization import softmax
from .products import accumulator, reshaped
from .views import joined, transposed


def _attention(b: Lowering, node: ir.Node) -> Any:
    query, key, value = (b.value(v) for v in node.inputs[:3])
    flat = len(b.shape(query)) == 3
    if flat:
        heads, kv = (node.attributes.get_int(name, 1) for name in ("q_num_heads", "kv_num_heads"))
        query, key, value = (_heads(b, x, n) for x, n in ((query, heads), (key, kv), (value, kv)))
    past = [given(node, i) for i in (4, 5)]
    if past[0] is not None and past[1] is not None:
        key, value = (joined(b, [b.value(p), x], 2) for p, x in zip(past, (key, value), strict=True))
    scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(b.shape(query)[3])
    softcap, causal = node.attributes.get_float("softcap", 0.0), node.attributes.get_int("is_causal", 0)
    bias = _bias(b, node, query, key, bool(causal), past[0] is not None)
    out = attend(b, query, key, value, bias, scale, softcap)
    if flat:
        n, h, t, d = b.shape(out)
        out = reshaped(b, transposed(b, out, [0, 2, 1, 3]), [n, t, h * d])
    return [out, key, value]


def _heads(b: Lowering, x: Any, heads: int) -> Any:
    n, t, width = b.shape(x)
    return transposed(b, reshaped(b, x, [n, t, heads, width // heads]), [0, 2, 1, 3])


def _bias(b: Lowering, node: ir.Node, query: Any, key: Any, causal: bool, has_past: bool) -> Any:
    """What is added to the scores, [1 or batch, 1 or heads, tokens or 1, keys]; None if nothing is."""
    mask, lengths = given(node, 3), given(node, 6)
    parts = [] if mask is None else [_four_axes(b, b.value(mask))]
    tokens, keys, dtype = b.shape(query)[2], b.shape(key)[2], query.ty.dtype
    infinity = b.const(-math.inf, "float32")
    if parts and parts[0].ty.dtype == "bool":
        parts = [mapped(b, lambda m: b.tirx.Select(m, b.const(0, "float32"), infinity), parts, "mask")]
    if causal:

        def triangle(sizes: Any, *held: Any) -> Any:
            zero = b.const(0, "float32")

            def element(n: Any, _: Any, i: Any, j: Any) -> Any:
                ahead = sizes[1] - sizes[0] if has_past else b.tirx.const(0, "int64")
                if held:
                    ahead = held[0](n).astype("int64") - sizes[0]
                return b.tirx.Select(j <= i + ahead, zero, infinity)

            return b.te.compute([held[0].shape[0] if held else 1, 1, *sizes], element, name="causal")

        held_by = [] if lengths is None else [b.value(lengths)]
        parts.append(b.compute(triangle, b.prims([tokens, keys]), *held_by))
    if lengths is not None:

        def held(count: Any, sizes: Any) -> Any:
            zero = b.const(0, "float32")
            return b.te.compute(
                [count.shape[0], 1, 1, sizes[0]],
                lambda n, _, __, j: b.tirx.Select(j < count(n).astype("int64"), zero, infinity),
                name="held",
            )

        parts.append(b.compute(held, b.value(lengths), b.prims([keys])))
    if not parts:
        return None
    if len(parts) == 1 and parts[0].ty.dtype == dtype:
        return parts[0]
    return mapped(
        b, lambda *x: sum((b.cast(v, "float32") for v in x[1:]), b.cast(x[0], "float32")), parts, "bias"
    )


def _four_axes(b: Lowering, mask: Any) -> Any:
    own = b.shape(mask)
    return mask if len(own) == 4 else reshaped(b, mask, [*[1] * (4 - len(own)), *own])


def attend(
    b: Lowering, query: Any, key: Any, value: Any, bias: Any, scale: float, softcap: float, seen: str = "all"
) -> Any:
    """softmax(scale * query @ keyᵀ + bias) @ value, [batch, heads, tokens, size of values]."""
    if fits_kernel(b, query, key, value, bias):
        return by_kernel(b, query, key, value, None, bias, scale=scale, softcap=softcap, seen=seen)
    if not softcap:
        found = tensor_cores.attention(b, query, key, value, bias, scale)
        if found is not None:
            return found
    scores = _scores(b, query, key, scale)
    if bias is not None:
        scores = mapped(b, lambda s, m: s + m.astype(s.ty.dtype), [scores, bias], "add")
    if softcap:
        cap = b.const(softcap, scores.ty.dtype)
        scores = mapped(b, lambda s: cap * f.tanh(b, s / cap), [scores], "softcap")
    return _mixed(b, softmax(b, scores, 3, empty=True), value, query.ty.dtype)


def _scores(b: Lowering, query: Any, key: Any, scale: float) -> Any:
    groups = b.shape(query)[1] // b.shape(key)[1]

    def scores(q: Any, k: Any) -> Any:
        d, wide = b.te.reduce_axis((0, q.shape[3]), "d"), accumulator(q.dtype)

        def element(n: Any, h: Any, i: Any, j: Any) -> Any:
            return b.te.sum(q(n, h, i, d).astype(wide) * k(n, h // groups, j, d).astype(wide), axis=d)

        found = b.te.compute([*q.shape[:3], k.shape[2]], element, name="scores")
        return b.te.compute(found.shape, lambda *i: found(*i) * b.const(scale, wide), name="scaled")

    return b.compute(scores, query, key)


def _mixed(b: Lowering, weights: Any, value: Any, dtype: str) -> Any:
    groups = b.shape(weights)[1] // b.shape(value)[1]

    def mix(w: Any, v: Any) -> Any:
        k, wide = b.te.reduce_axis((0, v.shape[2]), "k"), accumulator(v.dtype)

        def element(n: Any, h: Any, i: Any, j: Any) -> Any:
            return b.te.sum(w(n, h, i, k).astype(wide) * v(n, h // groups, k, j).astype(wide), axis=k)

        found = b.te.compute([*w.shape[:3], v.shape[3]], element, name="mixed")
        return found if wide == dtype else b.te.compute(found.shape, lambda *i: found(*i).astype(dtype))

    return b.compute(mix, weights, value)


def fits_kernel(b: Lowering, query: Any, key: Any, value: Any, bias: Any) -> bool:
    """Whether the kernel for CPUs takes these: float32, and sizes of heads that are known."""
    if b.cpu is None or any(x.ty.dtype != "float32" for x in (query, key, value)):
        return False
    if bias is not None:
        whole = [*b.shape(query)[:3], b.shape(key)[2]]
        pairs = list(zip(b.shape(bias), whole, strict=True))
        if bias.ty.dtype != "float32" or not all(s == 1 or b.equal(s, w) for s, w in pairs[:3]):
            return False
    fixed = (b.shape(query)[1], b.shape(key)[1], b.shape(query)[3], b.shape(value)[3])
    same = b.equal(b.shape(query)[0], b.shape(key)[0]) and b.equal(b.shape(key)[2], b.shape(value)[2])
    return same and all(isinstance(n, int) for n in fixed)


def by_kernel(
    b: Lowering,
    query: Any,
    key: Any,
    value: Any,
    lengths: Any,
    bias: Any,
    *,
    scale: float,
    softcap: float,
    seen: str,
    window: int = 0,
) -> Any:
    """One kernel for all of it."""
    assert b.cpu is not None
    batch, heads, tokens, size = b.shape(query)
    ones = None if bias is None else tuple(isinstance(s, int) and s == 1 for s in b.shape(bias))
    shape = flash.Shape(
        heads, heads // b.shape(key)[1], size, b.shape(value)[3], seen, scale, softcap, window, ones
    )
    inputs = [query, key, value, *([] if lengths is None else [lengths]), *([] if bias is None else [bias])]
    out = [batch, heads, tokens, b.shape(value)[3]]
    return b.call(flash.attention(shape, b.cpu), inputs, out, "float32")


def _cached(b: Lowering, node: ir.Node) -> Any:
    query, key, value, past_key, past_value, lengths = (b.value(v) for v in node.inputs[:6])
    bias = given(node, 6)
    fixed: dict[str, Any] = {
        "scale": node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(b.shape(query)[3]),
        "softcap": node.attributes.get_float("softcap", 0.0),
        "window": node.attributes.get_int("window", 0),
    }
    keys, values = (
        b.in_place(_cache_writer(b, new), [new, lengths, past], 2)
        for new, past in ((key, past_key), (value, past_value))
    )
    added = None if bias is None else b.value(bias)
    attend = _cached_on_device if b.cpu is None else partial(by_kernel, seen="cached")
    return [attend(b, query, keys, values, lengths, added, **fixed), keys, values]


def _cache_writer(b: Lowering, new: Any) -> Any:
    heads, size = b.shape(new)[1], b.shape(new)[3]
    if b.cpu is None:
        return cuda_cached.cache_write(heads, size, str(new.ty.dtype)).function
    return flash.write_cache(heads, size, new.ty.dtype)


def _cached_on_device(
    b: Lowering, query: Any, key: Any, value: Any, lengths: Any, bias: Any, **fixed: Any
) -> Any:
    batch, count, tokens, size = b.shape(query)
    heads = Heads(count, b.shape(key)[1], size, b.shape(value)[3])
    ones = None if bias is None else tuple(isinstance(s, int) and s == 1 for s in b.shape(bias))
    dtype = str(query.ty.dtype)
    kernel = cuda_cached.cached_attention(heads, dtype, cuda_cached.Scores(**fixed, bias=ones))
    inputs = [query, key, value, lengths]
    if bias is not None:
        inputs.append(mapped(b, lambda x: b.cast(x, "float32"), [bias], "bias"))
    return b.call(kernel.function, inputs, [batch, count, tokens, heads.value_size], dtype)


def _of_one_dtype(node: ir.Node) -> str | None:
    dtypes = {v.dtype for v in node.inputs[:5] if v is not None}
    fitting = len(dtypes) == 1 and dtypes <= {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    return None if fitting else "its queries and its cache are not of one floating dtype"


def _only_output(node: ir.Node) -> str | None:
    wanted = [o for o in node.outputs[3:] if o.uses() or o.is_graph_output()]
    if wanted:
        return "it is asked for its scores"
    if any(node.attributes.get_int(f"{side}_window_size", -1) >= 0 for side in ("left", "right")):
        return "it has a window"
    mode = node.attributes.get_int("softmax_precision", 1)
    return None if mode in (0, 1, 10, 16) else "its softmax is in another precision"


def _rotary(b: Lowering, node: ir.Node) -> Any:
    source, cos, sin = (b.value(v) for v in node.inputs[:3])
    ids, heads = given(node, 3), node.attributes.get_int("num_heads", 0)
    flat = len(b.shape(source)) == 3
    if flat:
        n, t, width = b.shape(source)
        source = reshaped(b, source, [n, t, heads, width // heads])
    else:
        source = transposed(b, source, [0, 2, 1, 3])
    turned = b.shape(cos)[-1]
    places = [] if ids is None else [checked(b, node, ids, b.shape(cos)[:1])]
    pairs = bool(node.attributes.get_int("interleaved", 0))

    def rotate(x: Any, c: Any, s: Any, *p: Any) -> Any:
        def angle(table: Any, n: Any, t: Any, k: Any) -> Any:
            if p:
                return table(p[0](n, t), k)
            return read(b, table, (n, t, k), [*x.shape[:2], turned])

        def element(n: Any, t: Any, h: Any, d: Any) -> Any:
            k = d // 2 if pairs else d % turned
            odd = d % 2 == 1 if pairs else d >= turned
            partner = (
                b.tirx.Select(odd, d - 1, d + 1) if pairs else b.tirx.Select(odd, d - turned, d + turned)
            )
            partner = b.tirx.min(b.tirx.max(partner, 0), x.shape[3] - 1)
            k = b.tirx.min(k, turned - 1)
            one, other = x(n, t, h, d), x(n, t, h, partner)
            sign = b.tirx.Select(odd, other, -other)
            found = one * angle(c, n, t, k) + sign * angle(s, n, t, k)
            return b.tirx.Select(d < 2 * turned, found, one)

        return b.te.compute(x.shape, element, name="rotary")

    found = b.compute(rotate, source, cos, sin, *places)
    return reshaped(b, found, [n, t, width]) if flat else transposed(b, found, [0, 2, 1, 3])


RULES: dict[str, Rule] = {
    "Attention": Rule(_attention, _only_output),
    "miaotui.CachedAttention": Rule(_cached, _of_one_dtype),
    "RotaryEmbedding": Rule(_rotary),
}
