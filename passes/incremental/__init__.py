"""Incremental: a whole-sequence decoder gets a KV cache."""

from __future__ import annotations

from ..base import Pass
from .derive import DeriveCache

INCREMENTAL: tuple[Pass, ...] = (DeriveCache(),)

__all__ = ["INCREMENTAL", "DeriveCache"]
