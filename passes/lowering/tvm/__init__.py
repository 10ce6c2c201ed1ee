"""Lowering to TVM: it takes standard operators and the dialect's, and fuses by itself."""

from __future__ import annotations

from ...base import Pass
from .tune import TuneKernels

LOWER_TVM: tuple[Pass, ...] = (TuneKernels(),)
"""In order."""

__all__ = ["LOWER_TVM", "TuneKernels"]
