"""Lowering to native C: linear layers and attention with all that its kernels fuse around them."""

from __future__ import annotations

from ...base import Pass
from .activation import NativeActivation
from .attention import NativeAttention
from .cache import NativeCache
from .gate import NativeGate
from .join import NativeJoin
from .keys import NativeKeys
from .linear import NativeLinear
from .narrow import NativeWeights
from .norm import NativeNorm
from .patches import NativePatches
from .residual import NativeResidual
from .rows import NativeRows

LOWER_NATIVE: tuple[Pass, ...] = (
    NativeRows(),
    NativePatches(),
    NativeAttention(),
    NativeLinear(),
    NativeActivation(),
    NativeGate(),
    NativeJoin(),
    NativeNorm(),
    NativeResidual(),
    NativeWeights(),
    NativeCache(),
    NativeKeys(),
)
"""In order. None is optional: the C of a program is compiled as a whole, which takes too long to be raced
against itself pass by pass, so the never-slower check has nothing to revert here."""

NATIVE_FP16: tuple[Pass, ...] = (NativeWeights("fp16"), NativeCache())
"""After LOWER_NATIVE for fp16: weights in half precision, and the cache; all else is computed in float32."""

NATIVE_BF16: tuple[Pass, ...] = (NativeWeights("bf16"), NativeCache())
"""The same for bf16; where the CPU multiplies bfloat16, several rows are rounded to it too."""

__all__ = [
    "LOWER_NATIVE",
    "NATIVE_BF16",
    "NATIVE_FP16",
    "NativeActivation",
    "NativeAttention",
    "NativeCache",
    "NativeGate",
    "NativeJoin",
    "NativeKeys",
    "NativeLinear",
    "NativeNorm",
    "NativePatches",
    "NativeResidual",
    "NativeRows",
    "NativeWeights",
]
