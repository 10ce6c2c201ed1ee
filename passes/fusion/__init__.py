"""Fusion: fewer, larger operators of the standard vocabulary, for every backend. Order is data."""

from __future__ import annotations

from ..base import Pass
from .conv import FuseConvScale
from .parallel import FuseGateUp, FuseQkv

FUSION: tuple[Pass, ...] = (FuseConvScale(), FuseQkv(), FuseGateUp())

__all__ = ["FUSION", "FuseConvScale", "FuseGateUp", "FuseQkv"]
