"""Lowering to ONNX Runtime: its own operators where they are faster, its missing ones rewritten."""

from __future__ import annotations

from ...base import Pass
from .attention import FlattenAttention
from .causal import BuiltInMask
from .linear import LinearToGemm
from .residual import KeepLayerNorm
from .rotary import LegalizeRotary

LOWER_CPU: tuple[Pass, ...] = (
    BuiltInMask(),
    FlattenAttention(),
    LegalizeRotary(),
    LinearToGemm(),
    KeepLayerNorm(),
)
"""For the CPU provider. Measured on onnxruntime 1.32, AVX-512, 128 tokens: the standard Attention kernel on
flat projections beats com.microsoft MultiHeadAttention and GroupQueryAttention by 10-25 %, Add and
LayerNormalization beat SkipLayerNormalization 6.5 times, Add and RMSNormalization beat
SkipSimplifiedLayerNormalization 2 times, so none of those is emitted."""

LOWER_CUDA: tuple[Pass, ...] = (BuiltInMask(), FlattenAttention(), LegalizeRotary())
"""For the CUDA provider."""

__all__ = [
    "LOWER_CPU",
    "LOWER_CUDA",
    "BuiltInMask",
    "FlattenAttention",
    "KeepLayerNorm",
    "LegalizeRotary",
    "LinearToGemm",
]
