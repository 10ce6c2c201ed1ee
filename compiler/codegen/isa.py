"""Instruction sets that code is compiled for: their flags, and what a CPU must have to run them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import OptionError
from ..options import Target

NATIVE = "native"
"""``cpu:native`` is the CPU that compiles; so is ``cpu`` alone."""

WITHOUT = "MIAOTUI_WITHOUT"
"""Environment variable: CPU features, separated by commas, to do without (tests and trials)."""


@dataclass(frozen=True, slots=True)
class Isa:
    """``flags``: for gcc and clang. ``zig``: zig's name of the CPU. ``needs``: names in ``kernels/cpu.h``."""

    name: str
    machine: str
    flags: tuple[str, ...]
    zig: str
    needs: tuple[str, ...] = ()

    @property
    def triple(self) -> str:
        """What zig is told to compile for."""
        return f"{self.machine}-linux-gnu"


_V3 = ("AVX2", "FMA", "F16C", "BMI2")
_V4 = (*_V3, "AVX512F", "AVX512BW", "AVX512DQ", "AVX512VL")
_WIDE = ("-march=x86-64-v4", "-mprefer-vector-width=512")
_VNNI = (*_WIDE, "-mavx512vnni")

ISAS: dict[str, Isa] = {
    isa.name: isa
    for isa in (
        Isa(
            "x86-64-v4-bf16",
            "x86_64",
            (*_VNNI, "-mavx512bf16"),
            "x86_64_v4+avx512vnni+avx512bf16",
            (*_V4, "AVX512-VNNI", "AVX512-BF16"),
        ),
        Isa("x86-64-v4-vnni", "x86_64", _VNNI, "x86_64_v4+avx512vnni", (*_V4, "AVX512-VNNI")),
        Isa("x86-64-v4", "x86_64", _WIDE, "x86_64_v4", _V4),
        Isa(
            "x86-64-v3-vnni",
            "x86_64",
            ("-march=x86-64-v3", "-mavxvnni"),
            "x86_64_v3+avxvnni",
            (*_V3, "AVX-VNNI"),
        ),
        Isa("x86-64-v3", "x86_64", ("-march=x86-64-v3",), "x86_64_v3", _V3),
        Isa("x86-64", "x86_64", ("-march=x86-64",), "x86_64"),
        Isa(
            "armv8.2-a",
            "aarch64",
            ("-march=armv8.2-a+dotprod+fp16",),
            "generic+v8_2a+dotprod+fullfp16",
            ("FP16", "DOTPROD"),
        ),
    )
}
"""By name; of one machine, the best first."""

_CPUINFO = {
    "AVX2": {"avx2"},
    "FMA": {"fma"},
    "F16C": {"f16c"},
    "BMI2": {"bmi1", "bmi2", "movbe", "abm"},
    "AVX-VNNI": {"avx_vnni"},
    "AVX512F": {"avx512f"},
    "AVX512BW": {"avx512bw"},
    "AVX512DQ": {"avx512dq"},
    "AVX512VL": {"avx512vl", "avx512cd"},
    "AVX512-VNNI": {"avx512_vnni"},
    "AVX512-BF16": {"avx512_bf16"},
    "FP16": {"asimdhp"},
    "DOTPROD": {"asimddp"},
}
"""Feature → the kernel's names of what makes it up."""


def isa_of(target: Target) -> Isa:
    """The instruction set of a CPU target; ``cpu`` and ``cpu:native`` are the best that this CPU has.

    Raises: OptionError if this machine is of no known architecture and none was named.
    """
    if target.arch not in ("", NATIVE):
        return ISAS[target.arch]
    machine, have = platform.machine(), features()
    for isa in ISAS.values():
        if isa.machine == machine and have.issuperset(isa.needs):
            return isa
    fact = f"this machine ({machine}) has no instruction set that code is compiled for"
    raise OptionError("--target", fact, f"name one of {', '.join(f'cpu:{name}' for name in ISAS)}")


def features() -> frozenset[str]:
    """What this CPU has, by the names of ``Isa.needs``."""
    hidden = os.environ.get(WITHOUT, "").split(",")
    return frozenset(name for name in _found() if name not in hidden)


def can_run(isa: Isa) -> bool:
    """Whether this CPU runs code that was built for ``isa``."""
    return platform.machine() == isa.machine and features().issuperset(isa.needs)


@cache
def _found() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            have = set(flags.split())
            return frozenset(feature for feature, parts in _CPUINFO.items() if parts <= have)
    return frozenset()
