"""Lowering to TVM: it takes standard operators and the dialect's, and fuses by itself."""

from __future__ import annotations

from ...base import Pass

LOWER_TVM: tuple[Pass, ...] = ()
"""In order."""

__all__ = ["LOWER_TVM"]
