"""Grouped-query attention with a KV cache: com.microsoft GroupQueryAttention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import UnsupportedError
from ..reference import Array
from .attention import softmax
from .base import (
    SOFTMAX,
    Inferred,
    OpSchema,
    StaticShapes,
    dtype_of,
    integer,
    number,
    parameters,
    shape_of,
    text,
)
from .rotary import rotate

_UNSUPPORTED = ("k_scale", "v_scale", "q_norm_weight", "k_norm_weight")


def group_query_attention(
    query: Array,
    key: Array | None,
    value: Array | None,
    past_key: Array | None,
    past_value: Array | None,
    seqlens_k: Array,
    total_sequence_length: Array,
    cos_cache: Array | None = None,
    sin_cache: Array | None = None,
    position_ids: Array | None = None,
    attention_bias: Array | None = None,
    head_sink: Array | None = None,
    k_scale: Array | None = None,
    v_scale: Array | None = None,
    q_norm_weight: Array | None = None,
    k_norm_weight: Array | None = None,
    query_seqlens: Array | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    **options: Any,
) -> tuple[Array | None, ...]:
    """Causal attention where ``num_heads / kv_num_heads`` query heads share a key head.

    query: [batch, sequence, heads * head], or with key and value behind it on the last axis. past and
    present: [batch, kv heads, length, head]. seqlens_k: int32[batch], tokens in the cache afterwards
    minus one. query_seqlens: int32[batch], how many of the sequence's tokens count, all if left out; those
    behind them stay out of the cache. Outputs: [batch, sequence, heads * head], present key, present
    value. Rows of the present beyond a batch entry's length are zero.

    Raises: UnsupportedError for quantized or windowed caches, norms of query and key.
    """
    if (
        any(q is not None for q in (k_scale, v_scale, q_norm_weight, k_norm_weight))
        or options["sliding_window_cache"]
        or options["kv_cache_bit_width"]
    ):
        raise UnsupportedError(
            "GroupQueryAttention", f"{', '.join(_UNSUPPORTED)} have no reference semantics"
        )
    batch, sequence = query.shape[:2]
    q, k, v = _split(query, key, value, num_heads, kv_num_heads)
    held = 0 if past_key is None else past_key.shape[2]
    length = max(held, int(total_sequence_length.reshape(-1)[0]))
    present_key = np.zeros((batch, kv_num_heads, length, k.shape[-1]), k.dtype)
    present_value = np.zeros((batch, kv_num_heads, length, v.shape[-1]), v.dtype)
    y = np.zeros(q.shape, np.float64)
    for b in range(batch):
        total = int(seqlens_k.reshape(-1)[b]) + 1
        past = max(0, total - (sequence if query_seqlens is None else int(query_seqlens.reshape(-1)[b])))
        if options["do_rotary"] and cos_cache is not None and sin_cache is not None:
            at = past + np.arange(sequence) if position_ids is None else position_ids.reshape(-1, sequence)[b]
            at = np.minimum(at, cos_cache.shape[0] - 1)  # padding rows may lie beyond the table
            q[b], k[b] = (
                rotate(x[b], cos_cache[at], sin_cache[at], bool(options["rotary_interleaved"]))
                for x in (q, k)
            )
        for present, old, new in ((present_key, past_key, k), (present_value, past_value, v)):
            if old is not None:
                present[b, :, :past] = old[b, :, :past]
            present[b, :, past:total] = new[b, :, : total - past]
        keys, values = (
            np.repeat(p[b, :, :total].astype(np.float64), num_heads // kv_num_heads, 0)
            for p in (present_key, present_value)
        )
        scores = (
            q[b].astype(np.float64) @ keys.swapaxes(-1, -2) * (options["scale"] or 1 / math.sqrt(q.shape[-1]))
        )
        if options["softcap"]:
            scores = options["softcap"] * np.tanh(scores / options["softcap"])
        if attention_bias is not None:
            scores = scores + attention_bias[b % attention_bias.shape[0], :, :, :total]
        scores = np.where(_hidden(past, sequence, total, options), -np.inf, scores)
        y[b] = _weights(scores, head_sink, options["smooth_softmax"] == 1) @ values
    output = y.transpose(0, 2, 1, 3).reshape(batch, sequence, -1).astype(query.dtype)
    return output, present_key, present_value, None


def _split(
    query: Array, key: Array | None, value: Array | None, heads: int, kv_heads: int
) -> tuple[Array, Array, Array]:
    batch, sequence = query.shape[:2]
    if key is None or value is None:
        head = query.shape[-1] // (heads + 2 * kv_heads)
        edges = [heads * head, (heads + kv_heads) * head]
        query, key, value = np.split(query, edges, -1)
    q, k, v = (
        x.reshape(batch, sequence, count, -1).transpose(0, 2, 1, 3).copy()
        for x, count in ((query, heads), (key, kv_heads), (value, kv_heads))
    )
    return q, k, v


def _hidden(past: int, sequence: int, total: int, options: Mapping[str, Any]) -> Array:
    places, keys = past + np.arange(sequence)[:, None], np.arange(total)
    hidden = keys > places if options["causal"] else np.zeros((sequence, total), np.bool_)
    window = options["local_window_size"]
    return np.asarray(hidden | (keys <= places - window) if window > 0 else hidden)


def _weights(scores: Array, sink: Array | None, smooth: bool) -> Array:
    if sink is None and not smooth:
        return softmax(scores)
    extra = np.zeros(scores.shape[0]) if sink is None else sink.astype(np.float64)
    column = np.broadcast_to(extra[:, None, None], (*scores.shape[:-1], 1))
    return softmax(np.concatenate([scores, column], -1))[..., :-1]


def _infer(node: ir.Node) -> Sequence[Inferred]:
    query, key, past = (shape_of(node, i) for i in (0, 1, 3))
    dtype, cache = dtype_of(node, 0), dtype_of(node, 3) or dtype_of(node, 0)
    heads, kv_heads = (node.attributes.get_int(name, 1) for name in ("num_heads", "kv_num_heads"))
    if query is None or len(query) != 3:
        return (dtype, None), (cache, None), (cache, None)
    width = query[2]
    head = width // (heads if key is not None else heads + 2 * kv_heads) if isinstance(width, int) else None
    output = ir.Shape([query[0], query[1], None if head is None else heads * head])
    # a present as long as the past is the shared buffer, one longer is a grown copy: only running tells
    length = query[1] if past is None or past[2] == 0 else ir.SymbolicDim(None)
    present = ir.Shape([query[0], kv_heads, length, head])
    return (dtype, output), (cache, present), (cache, present)


def _flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    y, present = outputs[0] or (1, 1, 1), outputs[1] if len(outputs) > 1 else None
    length = present[2] if present else y[1]
    return y[0] * y[1] * length * (4.0 * y[2] + SOFTMAX * int(attributes["num_heads"]))


SCHEMAS = (
    OpSchema(
        "GroupQueryAttention",
        parameters(
            "query:T key?:T value?:T past_key?:C past_value?:C seqlens_k:tensor(int32)"
            " total_sequence_length:tensor(int32) cos_cache?:T sin_cache?:T position_ids?:tensor(int64)"
            " attention_bias?:T head_sink?:T k_scale?:tensor(float) v_scale?:tensor(float) q_norm_weight?:T"
            " k_norm_weight?:T query_seqlens?:tensor(int32)"
        ),
        parameters("output:T present_key?:C present_value?:C output_qk?:T"),
        _infer,
        group_query_attention,
        {
            "num_heads": integer(required=True),
            "kv_num_heads": integer(required=True),
            "scale": number(),
            "softcap": number(0.0),
            "do_rotary": integer(0),
            "rotary_interleaved": integer(0),
            "causal": integer(1),
            "local_window_size": integer(-1),
            "smooth_softmax": integer(-1),
            "sliding_window_cache": integer(0),
            "qk_output": integer(0),
            "kv_cache_bit_width": integer(0),
            "k_quant_type": text("NONE"),
            "v_quant_type": text("NONE"),
            "qk_norm_epsilon": number(1e-6),
            "q_norm_epsilon": number(),
            "k_norm_epsilon": number(),
        },
        _flops,
    ),
)
