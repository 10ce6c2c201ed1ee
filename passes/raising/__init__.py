"""Raising: patterns of exporters of every age back to semantic operators. Order is data."""

from __future__ import annotations

from ..base import Pass
from .activations import RaiseHardSwish, RaiseSigmoid
from .attention import RaiseAttention
from .gelu import RaiseGelu
from .layer_norm import RaiseLayerNorm
from .layer_norm_affine import RaiseLayerNormAffine
from .rms_norm import RaiseRmsNorm
from .share_kv_heads import ShareKvHeads

RAISING: tuple[Pass, ...] = (
    RaiseSigmoid(),
    RaiseHardSwish(),
    RaiseGelu(),
    RaiseLayerNormAffine(),
    RaiseLayerNorm(),
    RaiseRmsNorm(),
    RaiseAttention(),
    ShareKvHeads(),
)
"""In order: a later pattern may contain what an earlier one made."""

__all__ = [
    "RAISING",
    "RaiseAttention",
    "RaiseGelu",
    "RaiseHardSwish",
    "RaiseLayerNorm",
    "RaiseLayerNormAffine",
    "RaiseRmsNorm",
    "RaiseSigmoid",
    "ShareKvHeads",
]
