"""Attention over a KV cache that rows fill to different lengths: miaotui CachedAttention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..reference import Array
from .attention import softmax
from .base import (
    MIAOTUI,
    SOFTMAX,
    Inferred,
    OpSchema,
    StaticShapes,
    dtype_of,
    integer,
    number,
    parameters,
    shape_of,
)


def cached_attention(
    query: Array,
    key: Array,
    value: Array,
    past_key: Array,
    past_value: Array,
    past_lengths: Array,
    bias: Array | None = None,
    *,
    scale: float | None,
    softcap: float,
    window: int,
) -> tuple[Array, Array, Array]:
    """Causal attention of new tokens to a row's past and to themselves.

    query: [batch, heads, tokens, size]; key, value: [batch, kv heads, tokens, size]; past: [batch, kv heads,
    capacity, size], of which row ``r`` holds ``past_lengths[r]`` positions. The new keys and values are
    written behind them, and query ``i`` of row ``r``, at position ``p = past_lengths[r] + i``, sees the
    positions up to ``p``, with a ``window`` only those above ``p - window``. bias: [batch or 1, heads or 1,
    tokens, total or 1], added after the soft cap, where ``total = max(past_lengths) + tokens``, which may
    not exceed the capacity. Outputs: [batch, heads, tokens, value size], present key and value.
    """
    tokens, groups = query.shape[2], query.shape[1] // key.shape[1]
    places = past_lengths[:, None] + np.arange(tokens)
    present = [written(past, new, past_lengths) for past, new in ((past_key, key), (past_value, value))]
    total = int(past_lengths.max(initial=0)) + tokens
    keys, values = (np.repeat(p[:, :, :total].astype(np.float64), groups, 1) for p in present)
    scores = query.astype(np.float64) @ keys.swapaxes(-1, -2) * (scale or 1 / math.sqrt(query.shape[-1]))
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    seen = np.arange(total) <= places[..., None]
    if window:
        seen &= np.arange(total) > places[..., None] - window
    weights = softmax(np.where(seen[:, None], scores, -np.inf))
    return (weights @ values).astype(query.dtype), present[0], present[1]


def written(past: Array, new: Array, lengths: Array) -> Array:
    """``past`` [batch, heads, capacity, width] with ``new`` [.., tokens, width] behind ``lengths``."""
    grown = past.copy()
    for row, length in enumerate(lengths):
        grown[row][:, length : length + new.shape[2]] = new[row]
    return grown


def packed(rows: Array, dtype: np.dtype[Any]) -> Array:
    """``rows`` [..., width] as a cache of ``dtype`` holds them: floats, or for int8 [..., width + 4].

    Those are codes of -127 to 127, then the bytes of the float32 by which they are multiplied.
    """
    if dtype != np.int8:
        return rows.astype(dtype)
    scale = (np.abs(rows).max(-1, keepdims=True) / 127).astype(np.float32)
    codes = np.rint(np.divide(rows, scale, out=np.zeros_like(rows), where=scale > 0)).astype(np.int8)
    return np.concatenate([codes, scale.view(np.int8)], -1)


def unpacked(cache: Array) -> Array:
    """What ``packed`` rows stand for, float32[..., width]."""
    if cache.dtype != np.int8:
        return cache.astype(np.float32)
    scale = np.ascontiguousarray(cache[..., -4:]).view(np.float32)
    return np.asarray(cache[..., :-4].astype(np.float32) * scale)


def _infer(node: ir.Node) -> Sequence[Inferred]:
    query, value, past_key, past_value = (shape_of(node, i) for i in (0, 2, 3, 4))
    output = None if query is None or value is None else ir.Shape([*query[:3], value[3]])
    return (dtype_of(node, 0), output), (dtype_of(node, 3), past_key), (dtype_of(node, 4), past_value)


def _flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    query, past, output = inputs[0] or (1, 1, 1, 1), inputs[3] or (1, 1, 1, 1), outputs[0] or (1, 1, 1, 1)
    keys = min(past[2], attributes["window"] or past[2])
    scores = math.prod(query[:3]) * keys
    return scores * (2.0 * query[3] + 2.0 * output[3] + SOFTMAX)


SCHEMAS = (
    OpSchema(
        "CachedAttention",
        parameters("query:T key:T value:T past_key:T past_value:T past_lengths:tensor(int64) bias?:T"),
        parameters("output:T present_key:T present_value:T"),
        _infer,
        cached_attention,
        {"scale": number(), "softcap": number(0.0), "window": integer(0)},
        _flops,
        MIAOTUI,
    ),
)
