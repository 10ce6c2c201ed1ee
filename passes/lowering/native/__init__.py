"""Lowering to native C: linear layers and attention with all that its kernels fuse around them."""

from __future__ import annotations

from ...base import Pass
from .attention import NativeAttention
from .linear import NativeLinear

LOWER_NATIVE: tuple[Pass, ...] = (
    NativeAttention(),
    NativeLinear(),
)
"""In order. None is optional: the C of a program is compiled as a whole, which takes too long to be raced
against itself pass by pass, so the never-slower check has nothing to revert here."""

__all__ = ["LOWER_NATIVE", "NativeAttention", "NativeLinear"]
