"""Attention, rotary embedding and q/k norm in one, cached or not: miaotui FusedAttention."""

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
    text,
)
from .cache import cached_attention, packed, unpacked, written
from .linear import normalized
from .rotary import rotate


def fused_attention(
    query: Array,
    key: Array,
    value: Array,
    past_key: Array | None = None,
    past_value: Array | None = None,
    past_lengths: Array | None = None,
    bias: Array | None = None,
    cos: Array | None = None,
    sin: Array | None = None,
    query_norm: Array | None = None,
    key_norm: Array | None = None,
    *,
    scale: float | None,
    softcap: float,
    window: int,
    causal: int,
    rotary: str,
    epsilon: float,
) -> tuple[Array | None, ...]:
    """Attention of ``rotate(norm(query))`` to ``rotate(norm(key))``; with a past, as CachedAttention.

    query: [batch, heads, tokens, size]; key, value: [batch, kv heads, keys, size]. cos, sin: [batch or 1,
    tokens, pairs], with rotary ``"half"`` or ``"interleaved"``. query_norm, key_norm: [size], RMS norm of
    every head before the rotation. Without a past every query sees all keys, with ``causal`` those at its own
    index and before; ``window`` counts back from there. bias: [batch or 1, heads or 1, tokens or 1, keys or
    1], added after scale and soft cap. Outputs: [batch, heads, tokens, value size]; present key and value.
    A past of float16 or int8 holds keys and values rounded (see ``packed``), the new ones too.
    """
    query, key = (
        x if g is None else normalized(x, "rms", g, None, epsilon).astype(x.dtype)
        for x, g in ((query, query_norm), (key, key_norm))
    )
    if cos is not None and sin is not None:
        turns = cos[:, None], sin[:, None], rotary == "interleaved"
        query, key = rotate(query, *turns), rotate(key, *turns)
    if past_key is not None and past_value is not None and past_lengths is not None:
        new_keys, new_values = packed(key, past_key.dtype), packed(value, past_value.dtype)
        y, *_ = cached_attention(
            query,
            unpacked(new_keys),
            unpacked(new_values),
            unpacked(past_key),
            unpacked(past_value),
            past_lengths,
            bias,
            scale=scale,
            softcap=softcap,
            window=window,
        )
        return y, written(past_key, new_keys, past_lengths), written(past_value, new_values, past_lengths)
    groups = query.shape[1] // key.shape[1]
    keys, values = (np.repeat(x.astype(np.float64), groups, 1) for x in (key, value))
    scores = query.astype(np.float64) @ keys.swapaxes(-1, -2) * (scale or 1 / math.sqrt(query.shape[-1]))
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    places, seen = np.arange(query.shape[2])[:, None], np.arange(key.shape[2])
    if causal:
        scores = np.where(seen <= places, scores, -np.inf)
    if window:
        scores = np.where(seen > places - window, scores, -np.inf)
    return (softmax(scores) @ values).astype(query.dtype), None, None


def _infer(node: ir.Node) -> Sequence[Inferred]:
    query, value, past_key, past_value = (shape_of(node, i) for i in (0, 2, 3, 4))
    output = None if query is None or value is None else ir.Shape([*query[:3], value[3]])
    return (dtype_of(node, 0), output), (dtype_of(node, 3), past_key), (dtype_of(node, 4), past_value)


def _flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    query, output = inputs[0] or (1, 1, 1, 1), outputs[0] or (1, 1, 1, 1)
    past = inputs[3] if len(inputs) > 3 else None
    keys = (past or inputs[1] or (1, 1, 1, 1))[2]
    keys = min(keys, attributes["window"] or keys)
    return math.prod(query[:3]) * keys * (2.0 * query[3] + 2.0 * output[3] + SOFTMAX)


SCHEMAS = (
    OpSchema(
        "FusedAttention",
        parameters(
            "query:T key:T value:T past_key?:C past_value?:C past_lengths?:tensor(int64) bias?:T"
            " cos?:T sin?:T query_norm?:T key_norm?:T"
        ),
        parameters("output:T present_key?:C present_value?:C"),
        _infer,
        fused_attention,
        {
            "scale": number(),
            "softcap": number(0.0),
            "window": integer(0),
            "causal": integer(0),
            "rotary": text(""),
            "epsilon": number(1e-6),
        },
        _flops,
        MIAOTUI,
    ),
)
