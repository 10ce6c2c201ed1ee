"""Precisions: bytes of a weight, and the arithmetic a device does it in."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import OptionError

STORED = "stored"
"""Weights as the model's own files hold them: the blocks of a GGUF file, a folder's bfloat16."""

BITS: Mapping[str, float] = {
    "fp32": 32.0, "fp16": 16.0, "bf16": 16.0, "fp8": 8.0, "int8": 8.5, "fp4": 4.5, "int4": 4.5,
}  # fmt: skip
"""Bits of a weight; with its share of a scale where blocks have one (a 16-bit scale per 32, 8-bit per 16)."""

CACHE_BITS: Mapping[str, float] = {"fp32": 32.0, "fp16": 16.0, "bf16": 16.0, "fp8": 8.0, "int8": 8.0}

_ARITHMETIC: Mapping[str, tuple[str, ...]] = {
    "fp32": ("fp32",), "fp16": ("fp16", "fp32"), "bf16": ("fp16", "fp32"), "fp8": ("fp8", "fp16", "fp32"),
    "int8": ("dot8", "fp16", "fp32"), "fp4": ("fp4", "fp8", "fp16", "fp32"), "int4": ("dot8", "fp16", "fp32"),
    STORED: ("dot8", "fp16", "fp32"),
}  # fmt: skip
"""First that the device has. int8 and int4 are the weights' alone: widened before they are multiplied, or on
a CPU multiplied with activations that are rounded to 8 bits (``dot8``)."""


def weight_bits(precision: str) -> float:
    """Bits of a weight. Raises: OptionError for an unknown precision.

    >>> weight_bits("int4")
    4.5
    """
    if precision not in BITS:
        raise OptionError("--precision", f"{precision!r} is unknown", f"give one of {', '.join(BITS)}")
    return BITS[precision]


def cache_bits(precision: str) -> float:
    """Bits of a number in the KV cache. Raises: OptionError for an unknown precision."""
    if precision not in CACHE_BITS:
        raise OptionError("--cache", f"{precision!r} is unknown", f"give one of {', '.join(CACHE_BITS)}")
    return CACHE_BITS[precision]


def arithmetic(precision: str, rates: Mapping[str, float]) -> str:
    """The dtype whose rate a device with these ``rates`` multiplies at.

    >>> arithmetic("fp4", {"fp16": 312.0, "fp32": 19.5})
    'fp16'
    """
    return next(dtype for dtype in _ARITHMETIC[precision] if dtype in rates)
