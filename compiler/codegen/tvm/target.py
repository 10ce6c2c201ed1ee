"""Our target as TVM spells it: the LLVM CPU and features of an instruction set, or a CUDA architecture."""

from __future__ import annotations

from typing import Any

from ...options import Target
from ..isa import isa_of

DEFAULT_ARCH = "sm_80"
"""Of a CUDA target that names none: machine code for it, and PTX for all later ones."""

LLVM: dict[str, tuple[str, tuple[str, ...]]] = {
    "x86-64-v4-bf16": ("x86-64-v4", ("+avx512vnni", "+avx512bf16")),
    "x86-64-v4-vnni": ("x86-64-v4", ("+avx512vnni",)),
    "x86-64-v4": ("x86-64-v4", ()),
    "x86-64-v3-vnni": ("x86-64-v3", ("+avxvnni",)),
    "x86-64-v3": ("x86-64-v3", ()),
    "x86-64": ("x86-64", ()),
    "armv8.2-a": ("generic", ("+v8.2a", "+neon", "+dotprod", "+fullfp16")),
}
"""Instruction set → LLVM's CPU and what is added to it."""

LANES = {"x86-64-v4": 16, "x86-64-v3": 8, "x86-64": 4, "generic": 4}
"""Floats that a register of the CPU holds."""


def isa_name(target: Target) -> str:
    """The instruction set of a CPU target. Raises: OptionError if this machine's is not known."""
    return isa_of(target).name


def spelled(target: Target) -> dict[str, Any]:
    """What ``tvm.target.Target`` is made from."""
    if target.device == "cuda":
        return {"kind": "cuda", "arch": target.arch or DEFAULT_ARCH, "host": {"kind": "llvm"}}
    isa = isa_of(target)
    cpu, features = LLVM[isa.name]
    found: dict[str, Any] = {"kind": "llvm", "mcpu": cpu}
    if features:
        found["mattr"] = list(features)
    if isa.machine != "x86_64":
        found["mtriple"] = f"{isa.machine}-linux-gnu"
    return found


def lanes(target: Target) -> int:
    """Floats that a vector register holds."""
    return LANES[LLVM[isa_of(target).name][0]]
