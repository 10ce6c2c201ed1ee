"""Attention: com.microsoft MultiHeadAttention, with packed projections, masks, bias and past."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import UnsupportedError
from ..reference import Array
from .base import SOFTMAX, Inferred, OpSchema, StaticShapes, dtype_of, integer, number, parameters, shape_of


def softmax(scores: Array) -> Array:
    """Softmax over the last axis; rows that are all -inf give zeros."""
    top = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(-1, keepdims=True)
    result: Array = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return result


def _heads(x: Array, count: int) -> Array:
    """[batch, sequence, count * head] as [batch, count, sequence, head]."""
    return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)


def multi_head_attention(
    query: Array,
    key: Array | None = None,
    value: Array | None = None,
    bias: Array | None = None,
    key_padding_mask: Array | None = None,
    attention_bias: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    past_sequence_length: Array | None = None,
    cache_indirection: Array | None = None,
    *,
    num_heads: int,
    scale: float | None,
    mask_filter_value: float | None,
    unidirectional: int,
) -> tuple[Array | None, ...]:
    """Attention of ``num_heads`` heads; outputs [batch, sequence, hidden], present key and value, weights.

    query: [batch, sequence, hidden], or [batch, sequence, heads, 3, head] with key and value inside.
    key: [batch, kv, hidden], [batch, kv, heads, 2, head] with value inside, or [batch, heads, kv, head].
    bias: [3 * hidden] of the projections. key_padding_mask: int32, 0 masks a key, as lengths [batch],
    [batch, total] or [batch, sequence, total]. attention_bias broadcasts to [batch, heads, sequence, total].

    Raises: UnsupportedError for a shared past buffer.
    """
    if past_sequence_length is not None or cache_indirection is not None:
        raise UnsupportedError("MultiHeadAttention", "a shared past buffer has no reference semantics")
    q, k, v = _project(query, key, value, bias, num_heads)
    if past_key is not None and past_value is not None:
        k, v = np.concatenate([past_key, k], 2), np.concatenate([past_value, v], 2)
    factor = scale if scale else 1 / math.sqrt(q.shape[-1])
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) * factor
    filtered = -10000.0 if mask_filter_value is None else mask_filter_value
    if key_padding_mask is not None:
        scores = scores + np.where(_visible(key_padding_mask, k.shape[2]), 0, filtered)
    if unidirectional:
        sequence, total = scores.shape[-2:]
        future = np.arange(total) > np.arange(sequence)[:, None] + total - sequence
        scores = scores + np.where(future, np.float64(np.finfo(np.float32).min), 0)
    if attention_bias is not None:
        scores = scores + attention_bias
    weights = softmax(scores)
    y = (weights @ v.astype(np.float64)).transpose(0, 2, 1, 3).reshape(*query.shape[:2], -1)
    return y.astype(query.dtype), k, v, weights.astype(query.dtype)


def _project(
    query: Array, key: Array | None, value: Array | None, bias: Array | None, heads: int
) -> tuple[Array, Array, Array]:
    if query.ndim == 5:
        q, k, v = (query[:, :, :, i].transpose(0, 2, 1, 3) for i in range(3))
    elif key is not None and key.ndim == 5:
        q = _heads(query, heads)
        k, v = (key[:, :, :, i].transpose(0, 2, 1, 3) for i in range(2))
    elif key is not None and value is not None:
        q = _heads(query, heads)
        k, v = (x if x.ndim == 4 else _heads(x, heads) for x in (key, value))
    else:
        raise UnsupportedError("MultiHeadAttention", "a query without key needs the packed five-axis form")
    if bias is not None:
        width = heads * q.shape[-1]
        parts = (bias[:width], bias[width : 2 * width], bias[2 * width :])
        q, k, v = (x + b.reshape(heads, 1, -1) for x, b in zip((q, k, v), parts, strict=True))
    return q, k, v


def _visible(mask: Array, total: int) -> Array:
    if mask.ndim == 1:
        return np.asarray(np.arange(total) < mask[:, None])[:, None, None]
    return np.asarray(mask != 0)[:, None, None] if mask.ndim == 2 else np.asarray(mask != 0)[:, None]


def _infer(node: ir.Node) -> Sequence[Inferred]:
    query, key, value, past = (shape_of(node, i) for i in (0, 1, 2, 6))
    dtype = dtype_of(node, 0)
    heads = node.attributes.get_int("num_heads", 1)
    output: ir.Shape | None = None
    if query is not None and len(query) == 5:
        output = ir.Shape([query[0], query[1], _times(query[2], query[4])])
    elif query is not None and key is not None and len(key) == 5:
        output = ir.Shape(query)
    elif query is not None and value is not None:
        width = _times(value[1], value[3]) if len(value) == 4 else value[2]
        output = ir.Shape([query[0], query[1], width])
    present: ir.Shape | None = None
    length = key[1] if key is not None and len(key) == 3 else None
    if output is not None and isinstance(output[2], int) and length is not None:
        total = length if past is None else length + past[2]
        present = ir.Shape([output[0], heads, total, output[2] // heads])
    return (dtype, output), (dtype, present), (dtype, present), (dtype, None)


def _times(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    return a * b if isinstance(a, int) and isinstance(b, int) else ir.SymbolicDim(None)


def _flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    query, key = inputs[0] or (1, 1, 1), inputs[1] if len(inputs) > 1 else None
    past = inputs[6] if len(inputs) > 6 else None
    length = (query[1] if key is None else key[2] if len(key) == 4 else key[1]) + (past[2] if past else 0)
    width = query[2] * query[4] if len(query) == 5 else query[2]
    # two products of 2 * rows * keys * width, and the softmax of every head
    return query[0] * query[1] * length * (4.0 * width + SOFTMAX * int(attributes["num_heads"]))


SCHEMAS = (
    OpSchema(
        "MultiHeadAttention",
        parameters(
            "query:T key?:T value?:T bias?:T key_padding_mask?:tensor(int32) attention_bias?:T past_key?:T"
            " past_value?:T past_sequence_length?:tensor(int32) cache_indirection?:tensor(int32)"
        ),
        parameters("output:T present_key?:T present_value?:T qk?:QK"),
        _infer,
        multi_head_attention,
        {
            "num_heads": integer(required=True),
            "scale": number(),
            "mask_filter_value": number(),
            "unidirectional": integer(0),
        },
        _flops,
    ),
)
