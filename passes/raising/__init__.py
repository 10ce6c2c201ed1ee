"""Raising: patterns of exporters of every age back to semantic operators. Order is data."""

from __future__ import annotations

from ..base import Pass
from .activations import RaiseHardSwish, RaiseSigmoid
from .gelu import RaiseGelu
from .layer_norm import RaiseLayerNorm
from .layer_norm_affine import RaiseLayerNormAffine
from .rms_norm import RaiseRmsNorm

RAISING: tuple[Pass, ...] = (
    RaiseSigmoid(),
    RaiseHardSwish(),
    RaiseGelu(),
    RaiseLayerNormAffine(),
    RaiseLayerNorm(),
    RaiseRmsNorm(),
)
"""In order: a later pattern may contain what an earlier one made."""

__all__ = [
    "RAISING",
    "RaiseGelu",
    "RaiseHardSwish",
    "RaiseLayerNorm",
    "RaiseLayerNormAffine",
    "RaiseRmsNorm",
    "RaiseSigmoid",
]
