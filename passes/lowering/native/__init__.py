"""Lowering to native C: linear layers and attention with all that its kernels fuse around them."""

from __future__ import annotations

from ...base import Pass

LOWER_NATIVE: tuple[Pass, ...] = ()

__all__ = ["LOWER_NATIVE"]
