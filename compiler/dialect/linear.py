"""A linear layer with all that is fused around it: miaotui Linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..reference import Array
from .base import (
    MIAOTUI,
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
from .gelu import erf


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}
"""Activations a Linear may end with, by name."""

ACTIVATION_DTYPE = "miaotui.activations"
"""Key of a weight tensor's metadata: ``BFLOAT16`` lets kernels round what they multiply it with, too."""


def normalized(x: Array, norm: str, scale: Array | None, bias: Array | None, epsilon: float) -> Array:
    """``x`` after ``"rms"``, ``"layer"`` or no (``""``) normalization of its last axis, in float64."""
    wide = x.astype(np.float64)
    if not norm:
        return wide
    if norm == "layer":
        wide = wide - wide.mean(-1, keepdims=True)
    wide = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + epsilon)
    if scale is not None:
        wide = wide * scale
    return wide if bias is None else np.asarray(wide + bias)


def linear(
    x: Array,
    norm_scale: Array | None,
    norm_bias: Array | None,
    residual: Array | None,
    *layers: Array | None,
    norm: str,
    epsilon: float,
    activation: str,
    gated: int,
) -> tuple[Array]:
    """``activation(norm(x) @ weightᵀ + bias) + residual``, the outputs of several weights side by side.

    x: [..., columns]; each weight: [rows, columns] and its bias [rows] or None; residual: [..., all rows].
    gated: of two weights, ``activation(norm(x) @ weightᵀ + bias) * (norm(x) @ weight_1ᵀ + bias_1)``.
    """
    rows = normalized(x, norm, norm_scale, norm_bias, epsilon)
    parts = []
    for weight, bias in zip(layers[::2], [*layers[1::2], None], strict=False):
        if weight is not None:
            product = rows @ weight.astype(np.float64).T
            parts.append(product if bias is None else product + bias)
    act = ACTIVATIONS[activation]
    y = act(parts[0]) * parts[1] if gated else act(np.concatenate(parts, -1))
    return ((y if residual is None else y + residual).astype(x.dtype),)


def _infer(node: ir.Node) -> Sequence[Inferred]:
    x = shape_of(node, 0)
    weights = [shape_of(node, i) for i in (4, 6, 8) if i < len(node.inputs) and node.inputs[i] is not None]
    rows = [w[0] for w in weights if w is not None]
    if x is None or len(rows) != len(weights) or not all(isinstance(r, int) for r in rows):
        return ((dtype_of(node, 0), None),)
    width = rows[0] if node.attributes.get_int("gated", 0) else sum(r for r in rows if isinstance(r, int))
    return ((dtype_of(node, 0), ir.Shape([*x[:-1], width])),)


def _flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    x = inputs[0] or (1, 1)
    weights = [w for w in (inputs[i] if i < len(inputs) else None for i in (4, 6, 8)) if w is not None]
    return 2.0 * math.prod(x) * sum(w[0] for w in weights)


SCHEMAS = (
    OpSchema(
        "Linear",
        parameters(
            "x:T norm_scale?:T norm_bias?:T residual?:T"
            " weight:T bias?:T weight_1?:T bias_1?:T weight_2?:T bias_2?:T"
        ),
        parameters("y:T"),
        _infer,
        linear,
        {
            "norm": text(""),
            "epsilon": number(1e-5),
            "activation": text(""),
            "gated": integer(0),
        },
        _flops,
        MIAOTUI,
    ),
)
