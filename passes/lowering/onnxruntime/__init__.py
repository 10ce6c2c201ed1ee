"""Lowering to ONNX Runtime: its own operators where they are faster, its missing ones rewritten."""

from __future__ import annotations

from ...base import Pipeline

LOWER_CPU: Pipeline = ()
LOWER_CUDA: Pipeline = ()
