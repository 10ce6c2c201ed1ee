"""Lowering to ONNX Runtime: its own operators where they are faster, its missing ones rewritten."""

from __future__ import annotations

from ...base import Pipeline
from .attention import FlattenAttention
from .linear import LinearToGemm
from .residual import KeepLayerNorm

LOWER_CPU: Pipeline = (FlattenAttention(), LinearToGemm(), KeepLayerNorm())
LOWER_CUDA: Pipeline = ()
