"""Rotary position embedding: com.microsoft RotaryEmbedding."""

from __future__ import annotations

import math

import numpy as np

from ..reference import Array
from .base import OpSchema, integer, like_first, number, parameters


def rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """Rotate pairs of the first ``2 * cos.shape[-1]`` features; x: [..., head], cos and sin: [..., pairs].

    Pairs are neighbours if ``interleaved``, else one of each half.
    """
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned[..., : width // 2], turned[..., width // 2 :]
    first, second = a * cos - b * sin, b * cos + a * sin
    if interleaved:
        turned = np.stack([first, second], -1).reshape(turned.shape)
    else:
        turned = np.concatenate([first, second], -1)
    return np.concatenate([turned, rest], -1).astype(x.dtype)


def rotary_embedding(
    x: Array,
    position_ids: Array,
    cos_cache: Array,
    sin_cache: Array,
    *,
    interleaved: int,
    num_heads: int,
    rotary_embedding_dim: int,
    is_packed_batching: int,
    scale: float,
) -> tuple[Array]:
    """x: [batch, sequence, hidden] or [batch, heads, sequence, head]; caches: [positions, pairs].

    position_ids: [batch, sequence], or [1]: the first token's position.
    """
    head = x.shape[-1]
    if x.ndim == 3:
        head = head // num_heads if num_heads else 2 * cos_cache.shape[-1]
        split = x.reshape(*x.shape[:2], -1, head)
    else:
        split = x.transpose(0, 2, 1, 3)
    places = (
        position_ids
        if position_ids.size > 1 or split.shape[1] == 1
        else position_ids.item() + np.arange(split.shape[1])
    )
    places = np.broadcast_to(places.reshape(-1, split.shape[1]), split.shape[:2])
    y = rotate(split, cos_cache[places][:, :, None], sin_cache[places][:, :, None], bool(interleaved))
    return (y.reshape(x.shape) if x.ndim == 3 else y.transpose(0, 2, 1, 3),)


SCHEMAS = (
    OpSchema(
        "RotaryEmbedding",
        parameters("input:T position_ids:tensor(int64) cos_cache:T sin_cache:T"),
        parameters("output:T"),
        like_first,
        rotary_embedding,
        {
            "interleaved": integer(0),
            "num_heads": integer(0),
            "rotary_embedding_dim": integer(0),
            "is_packed_batching": integer(0),
            "scale": number(1.0),
        },
        lambda inputs, outputs, _: 3.0 * math.prod(inputs[0] or ()),
    ),
)
