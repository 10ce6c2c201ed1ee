"""Low rank: a weight as the product of two thin ones where that is faster within the error allowed."""

from __future__ import annotations

from ..base import Pass
from .factor import FactorWeights

LOWRANK: tuple[Pass, ...] = (FactorWeights(),)

__all__ = ["LOWRANK", "FactorWeights"]
