"""Gelu and its relatives: com.microsoft Gelu, BiasGelu, FastGelu, QuickGelu."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..reference import Array
from .base import GELU, OpSchema, StaticShapes, like_first, number, parameters

erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> tuple[Array]:
    """Exact Gelu: ``x/2 * (1 + erf(x / sqrt 2))``."""
    wide = x.astype(np.float64)
    return ((wide / 2 * (1 + erf(wide / math.sqrt(2)))).astype(x.dtype),)


def bias_gelu(a: Array, b: Array) -> tuple[Array]:
    """Exact Gelu of ``a + b``; a: [..., n], b: [n]."""
    return gelu(a + b)


def fast_gelu(x: Array, bias: Array | None = None) -> tuple[Array]:
    """Gelu's tanh approximation of ``x + bias``; x: [..., n], bias: [n]."""
    wide = (x if bias is None else x + bias).astype(np.float64)
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    return ((wide / 2 * (1 + np.tanh(inner))).astype(x.dtype),)


def quick_gelu(x: Array, *, alpha: float) -> tuple[Array]:
    """``x * sigmoid(alpha * x)``."""
    wide = x.astype(np.float64)
    return ((wide / (1 + np.exp(-alpha * wide))).astype(x.dtype),)


def _flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    bias = len(inputs) > 1 and inputs[1] is not None
    return (GELU + (1 if bias else 0)) * math.prod(outputs[0] or ())


_X, _Y = parameters("X:T"), parameters("Y:T")

SCHEMAS = (
    OpSchema("Gelu", _X, _Y, like_first, gelu, {}, _flops),
    OpSchema("BiasGelu", parameters("A:T B:T"), parameters("C:T"), like_first, bias_gelu, {}, _flops),
    OpSchema("FastGelu", parameters("X:T bias?:T"), _Y, like_first, fast_gelu, {}, _flops),
    OpSchema("QuickGelu", _X, _Y, like_first, quick_gelu, {"alpha": number(1.702)}, _flops),
)
