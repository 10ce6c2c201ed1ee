"""Packing weights for the native kernels: integer blocks and floats, padded to whole tiles."""

from __future__ import annotations

from .packed import TILE, PackedWeight

__all__ = ["TILE", "PackedWeight"]
