"""Raising: patterns of exporters of every age back to semantic operators. Order is data."""

from __future__ import annotations

from ..base import Pass
from ..cleanup.fold_shapes import FoldShapes
from ..cleanup.merge_views import MergeViews
from .activations import RaiseHardSwish, RaiseSigmoid
from .attention import RaiseAttention
from .conv_affine import FoldConvAffine
from .conv_pad import FoldConvPad
from .flat_softmax import RaiseFlatSoftmax
from .gelu import RaiseGelu
from .gemm import RaiseLinear
from .global_pool import RaiseGlobalPool
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
    FoldConvPad(),
    FoldConvAffine(),
    RaiseGlobalPool(),
    RaiseLinear(),
    FoldShapes(),
    MergeViews(),
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
    "FoldConvAffine",
    "FoldConvPad",
    "RaiseAttention",
    "RaiseFlatSoftmax",
    "RaiseGelu",
    "RaiseGlobalPool",
    "RaiseHardSwish",
    "RaiseLayerNorm",
    "RaiseLayerNormAffine",
    "RaiseLinear",
    "RaisePartialRotary",
    "RaiseRmsNorm",
    "RaiseRotary",
    "RaiseSigmoid",
    "ShareKvHeads",
    "SplitMergedHeads",
]
