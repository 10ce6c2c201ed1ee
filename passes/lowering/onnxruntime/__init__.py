"""Lowering to ONNX Runtime: its own operators where they are faster, its missing ones rewritten."""

from __future__ import annotations

from ...base import Pass
from .attention import FlattenAttention
from .blocked import UseBlockKernels
from .cached_attention import ExpandCachedAttention
from .causal import BuiltInMask
from .gqa import UseGroupQueryAttention
from .halves import StoreHalves
from .integers import UseIntegerKernels
from .join import JoinBlocked
from .linear import LinearToGemm
from .nhwc import PreferNhwc
from .residual import KeepLayerNorm
from .rotary import LegalizeRotary
from .skip_norm import FuseSkipNorm
from .transposed import ReadTransposed

LOWER_CPU: tuple[Pass, ...] = (
    JoinBlocked(),
    UseBlockKernels(),
    UseIntegerKernels(),
    UseGroupQueryAttention(),
    ExpandCachedAttention(),
    BuiltInMask(),
    FlattenAttention(),
    LegalizeRotary(),
    ReadTransposed(),
    LinearToGemm(),
    KeepLayerNorm(),
    StoreHalves(),
)
"""For the CPU provider. Measured on onnxruntime 1.32, AVX-512, 128 tokens: the standard Attention kernel on
flat projections beats com.microsoft MultiHeadAttention and GroupQueryAttention by 10-25 %, Add and
LayerNormalization beat SkipLayerNormalization 6.5 times, Add and RMSNormalization beat
SkipSimplifiedLayerNormalization 2 times, so none of those is emitted. At one row, a decoded token of SmolLM2,
the merged norms gain nothing, and FusedMatMul and Gemm, which packs the output layer, are equally fast.
GroupQueryAttention is taken for its cache in place."""

LOWER_CUDA: tuple[Pass, ...] = (
    JoinBlocked(),
    UseBlockKernels(),
    UseGroupQueryAttention(),
    ExpandCachedAttention(),
    BuiltInMask(),
    FlattenAttention(),
    LegalizeRotary(),
    ReadTransposed(),
    FuseSkipNorm(),
)
"""For the CUDA provider. Attention keeps its standard form, for which the provider chooses flash,
memory-efficient or plain kernels (a built-in mask leaves it the choice); over a cache of 16 bits it is
GroupQueryAttention. Blocked weights stay in their bits: a token reads them so, many tokens expand them once.
SkipLayerNormalization and SkipSimplifiedLayerNormalization save launches; ONNX Runtime merges bias with Gelu,
Sigmoid with Mul."""

TRY_CUDA: tuple[Pass, ...] = (PreferNhwc(),)
"""For the CUDA provider, where they are timed and gain, or are asked for."""

__all__ = [
    "LOWER_CPU",
    "LOWER_CUDA",
    "TRY_CUDA",
    "BuiltInMask",
    "ExpandCachedAttention",
    "FlattenAttention",
    "FuseSkipNorm",
    "JoinBlocked",
    "KeepLayerNorm",
    "LegalizeRotary",
    "LinearToGemm",
    "PreferNhwc",
    "ReadTransposed",
    "StoreHalves",
    "UseBlockKernels",
    "UseGroupQueryAttention",
    "UseIntegerKernels",
]
