"""Session settings of an ONNX Runtime executable: what is set beyond its defaults, and why."""

from __future__ import annotations

from ...options import Target

COMMON = {"graph_optimization_level": "all"}
"""The defaults are kept otherwise: measured interleaved, memory arena, memory pattern and spinning changed
nothing beyond 1 % on x86, and flushing denormals nothing on models without them."""

CUDA = {
    # TF32 keeps 10 bits of the mantissa: an executable of fp32 would miss its own tolerance.
    "ep.cuda.use_tf32": "0",
}


NHWC = {"ep.cuda.prefer_nhwc": "1"}
"""For programs that are marked so: the provider then transposes once around convolutions side by side."""


def settings_for(target: Target) -> dict[str, str]:
    """Session options by name, ``session.*`` config entries and ``ep.<provider>.*`` options."""
    return {**COMMON, **(CUDA if target.device == "cuda" else {})}
