"""Lowering to native C: linear layers and attention with all that its kernels fuse around them."""

from __future__ import annotations

from ...base import Pass
from .activation import NativeActivation
from .attention import NativeAttention
from .cache import NativeCache
from .gate import NativeGate
from .join import NativeJoin
from .linear import NativeLinear
from .norm import NativeNorm
from .residual import NativeResidual
from .rows import NativeRows

LOWER_NATIVE: tuple[Pass, ...] = (
    NativeRows(),
    NativeAttention(),
    NativeLinear(),
    NativeActivation(),
    NativeGate(),
    NativeJoin(),
    NativeNorm(),
    NativeResidual(),
    NativeCache(),
)
"""In order. None is optional: the C of a program is compiled as a whole, which takes too long to be raced
against itself pass by pass, so the never-slower check has nothing to revert here."""

__all__ = [
    "LOWER_NATIVE",
    "NativeActivation",
    "NativeAttention",
    "NativeCache",
    "NativeGate",
    "NativeJoin",
    "NativeLinear",
    "NativeNorm",
    "NativeResidual",
    "NativeRows",
]
