"""Numeric formats: float16 with a range guard."""

from __future__ import annotations

from ..base import Pass
from .fp16 import ConvertFp16

PRECISION: tuple[Pass, ...] = (ConvertFp16(),)
