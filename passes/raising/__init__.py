"""Raising: patterns of exporters of every age back to semantic operators. Order is data."""

from __future__ import annotations

from ..base import Pass
from ..cleanup.merge_views import MergeViews
from .activations import RaiseHardSwish, RaiseSigmoid
from .attention import RaiseAttention
from .flat_softmax import RaiseFlatSoftmax
from .gelu import RaiseGelu
from .layer_norm import RaiseLayerNorm
from .layer_norm_affine import RaiseLayerNormAffine
from .partial_rotary import RaisePartialRotary
from .rms_norm import RaiseRmsNorm
from .rotary import RaiseRotary
from .share_kv_heads import ShareKvHeads
from .split_heads import SplitMergedHeads

RAISING: tuple[Pass, ...] = (
    RaiseFlatSoftmax(),
    RaiseSigmoid(),
    RaiseHardSwish(),
    RaiseGelu(),
    RaiseLayerNormAffine(),
    RaiseLayerNorm(),
    RaiseRmsNorm(),
    RaiseRotary(),
    RaisePartialRotary(),
    SplitMergedHeads(),
    MergeViews(),
    RaiseAttention(),
    ShareKvHeads(),
)
"""In order: a later pattern may contain what an earlier one made."""

__all__ = [
    "RAISING",
    "RaiseAttention",
    "RaiseFlatSoftmax",
    "RaiseGelu",
    "RaiseHardSwish",
    "RaiseLayerNorm",
    "RaiseLayerNormAffine",
    "RaisePartialRotary",
    "RaiseRmsNorm",
    "RaiseRotary",
    "RaiseSigmoid",
    "ShareKvHeads",
    "SplitMergedHeads",
]
