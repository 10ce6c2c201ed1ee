"""Lowering to ONNX Runtime: its own operators where they are faster, its missing ones rewritten."""

from __future__ import annotations

from ...base import Pipeline
from .attention import FlattenAttention
from .linear import LinearToGemm
from .residual import KeepLayerNorm
from .rotary import LegalizeRotary

LOWER_CPU: Pipeline = (FlattenAttention(), LegalizeRotary(), LinearToGemm(), KeepLayerNorm())
LOWER_CUDA: Pipeline = ()
