"""Low rank: a weight as the product of two thin ones where that is faster within the error allowed."""

from __future__ import annotations

from ..base import Pass

LOWRANK: tuple[Pass, ...] = ()

__all__ = ["LOWRANK"]
