"""Norms: com.microsoft SkipLayerNormalization and relatives, SimplifiedLayerNormalization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..reference import Array
from .base import Flops, Inferred, OpSchema, StaticShapes, dtype_of, integer, number, parameters, shape_of


def _skip_infer(node: ir.Node) -> Sequence[Inferred]:
    shape = shape_of(node, 0)
    statistic = None if shape is None else ir.Shape([*shape[:-1], 1])
    # ONNX Runtime keeps mean and inverse deviation in float32 whatever the input's dtype
    wide = (ir.DataType.FLOAT, statistic)
    return (dtype_of(node, 0), shape), wide, wide, (dtype_of(node, 0), shape)


def _centred(x: Array, gamma: Array, beta: Array | None, epsilon: float) -> tuple[Array, Array, Array]:
    wide = x.astype(np.float64)
    mean = wide.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt(((wide - mean) ** 2).mean(-1, keepdims=True) + epsilon)
    y = (wide - mean) * inverse * gamma + (0 if beta is None else beta)
    return y.astype(x.dtype), mean.astype(np.float32), inverse.astype(np.float32)


def _uncentred(x: Array, gamma: Array, axis: int, epsilon: float) -> tuple[Array, Array]:
    wide = x.astype(np.float64)
    axes = tuple(range(axis % x.ndim, x.ndim))
    inverse = 1 / np.sqrt((wide**2).mean(axes, keepdims=True) + epsilon)
    return (wide * inverse * gamma).astype(gamma.dtype), inverse.astype(np.float32)


def skip_layer_norm(
    x: Array,
    skip: Array,
    gamma: Array,
    beta: Array | None = None,
    bias: Array | None = None,
    *,
    epsilon: float,
) -> tuple[Array, ...]:
    """LayerNorm of ``x + skip + bias`` over the last axis.

    Outputs: normalized, mean, inverse deviation, and the sum itself (the next residual).
    """
    total = x + skip if bias is None else x + skip + bias
    return (*_centred(total, gamma, beta, epsilon), total)


def skip_simplified_layer_norm(
    x: Array, skip: Array, gamma: Array, bias: Array | None = None, *, epsilon: float
) -> tuple[Array | None, ...]:
    """RMSNorm of ``x + skip + bias`` over the last axis; outputs as SkipLayerNormalization, but no mean."""
    total = x + skip if bias is None else x + skip + bias
    y, inverse = _uncentred(total, gamma, -1, epsilon)
    return y, None, inverse, total


def simplified_layer_norm(
    x: Array, scale: Array, *, axis: int, epsilon: float, stash_type: int
) -> tuple[Array, ...]:
    """RMSNorm over the axes from ``axis`` on."""
    return _uncentred(x, scale, axis, epsilon)


def _simplified_infer(node: ir.Node) -> Sequence[Inferred]:
    shape = shape_of(node, 0)
    statistic: ir.Shape | None = None
    if shape is not None:
        axis = node.attributes.get_int("axis", -1) % max(1, len(shape))
        statistic = ir.Shape([d if i < axis else 1 for i, d in enumerate(shape)])
    return (dtype_of(node, 1), shape), (ir.DataType.FLOAT, statistic)


def embed_layer_norm(
    input_ids: Array,
    segment_ids: Array | None,
    word: Array,
    position: Array,
    segment: Array | None,
    gamma: Array,
    beta: Array,
    mask: Array | None = None,
    position_ids: Array | None = None,
    *,
    epsilon: float,
    mask_index_type: int | None,
) -> tuple[Array, ...]:
    """LayerNorm of word + position + segment embeddings. input_ids: [batch, sequence].

    Outputs: normalized [batch, sequence, hidden], tokens kept per row by ``mask``, and the sum itself.
    """
    places = np.arange(input_ids.shape[1]) if position_ids is None else position_ids
    total = word[input_ids] + position[places]
    if segment is not None and segment_ids is not None:
        total = total + segment[segment_ids]
    kept = np.zeros(input_ids.shape[0], np.int32) if mask is None else mask.sum(1).astype(np.int32)
    return _centred(total, gamma, beta, epsilon)[0], kept, total


def _embed_infer(node: ir.Node) -> Sequence[Inferred]:
    ids, table = shape_of(node, 0), shape_of(node, 2)
    shape = None if ids is None or table is None else ir.Shape([*ids, table[-1]])
    kept = None if ids is None else ir.Shape([ids[0]])
    return (dtype_of(node, 2), shape), (ir.DataType.INT32, kept), (dtype_of(node, 2), shape)


def _per_element(count: int) -> Flops:
    def flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
        return float(count * math.prod(inputs[0] or ()))

    return flops


_SKIP_OUTPUTS = parameters("output:T mean?:U inv_std_var?:U input_skip_bias_sum?:T")
_EMBED_INPUTS = parameters(
    "input_ids:I segment_ids?:I word_embedding:T position_embedding:T segment_embedding?:T gamma:T beta:T"
    " mask?:I position_ids?:I"
)

SCHEMAS = (
    OpSchema(
        "SkipLayerNormalization",
        parameters("input:T skip:T gamma:T beta?:T bias?:T"),
        _SKIP_OUTPUTS,
        _skip_infer,
        skip_layer_norm,
        {"epsilon": number(1e-12)},
        _per_element(9),
    ),
    OpSchema(
        "SkipSimplifiedLayerNormalization",
        parameters("input:T skip:T gamma:T bias?:T"),
        _SKIP_OUTPUTS,
        _skip_infer,
        skip_simplified_layer_norm,
        {"epsilon": number(1e-12)},
        _per_element(6),
    ),
    OpSchema(
        "SimplifiedLayerNormalization",
        parameters("X:T scale:V"),
        parameters("Y:V inv_std_var?:U"),
        _simplified_infer,
        simplified_layer_norm,
        {"axis": integer(-1), "epsilon": number(1e-5), "stash_type": integer(1)},
        _per_element(5),
        domain="",  # ONNX Runtime registers this one among the standard operators
    ),
    OpSchema(
        "EmbedLayerNormalization",
        _EMBED_INPUTS,
        parameters("output:T mask_index?:I embedding_sum?:T"),
        _embed_infer,
        embed_layer_norm,
        {"epsilon": number(1e-12), "mask_index_type": integer()},
        lambda inputs, outputs, _: 9.0 * math.prod(outputs[0] or ()),
    ),
)
