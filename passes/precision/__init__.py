"""Numeric formats: float16 with a range guard, weights of 8 and 4 bits."""

from __future__ import annotations

from ..base import Pass
from ..fusion.conv import FuseConvScale
from .activations import QuantizeActivations
from .fp16 import ConvertBf16, ConvertFp16
from .smoothing import SmoothActivations
from .stored import StoreWeights
from .weights import QuantizeWeights

PRECISION: tuple[Pass, ...] = (ConvertFp16(),)
"""float16 where it holds: weights and activations halved, float32 kept where range or a kernel demands it."""

BF16: tuple[Pass, ...] = (ConvertBf16(),)
"""The same in bfloat16, which has float32's range and 8 bits."""

STORED: dict[str, tuple[Pass, ...]] = {
    "fp16": (StoreWeights("fp16"),),
    "bf16": (StoreWeights("bf16"),),
}
"""For ONNX Runtime on CPUs, which has no kernels that compute in 16 bits: weights only."""

WEIGHTS: dict[str, tuple[Pass, ...]] = {
    "int8": (SmoothActivations(), QuantizeWeights(bits=8)),
    "int4": (SmoothActivations(bits=4), QuantizeWeights(bits=4)),
}
"""By precision: weights in blocks of few bits, which their kernels multiply with 8-bit activations."""

INTEGERS: tuple[Pass, ...] = (
    FuseConvScale(),
    QuantizeActivations(),
    SmoothActivations(),
    QuantizeWeights(bits=8),
)
"""For int8 under ONNX Runtime, whose products of 8-bit integers are 3.5 times as fast as those of float32,
and those of blocked weights 1.3 times. What they don't take is rounded in blocks. Integer products even
channels out for themselves: factors that are best for blocks cost MiniLM a twentieth of its error."""

__all__ = [
    "BF16",
    "INTEGERS",
    "PRECISION",
    "STORED",
    "WEIGHTS",
    "ConvertBf16",
    "ConvertFp16",
    "QuantizeActivations",
    "QuantizeWeights",
    "SmoothActivations",
    "StoreWeights",
]
