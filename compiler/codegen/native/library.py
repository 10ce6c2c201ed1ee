"""The library of a variant: kernels copied beside the emitted code, and all compiled into one file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ...manifest import IN_PLACE
from ..isa import Isa
from .toolchain import KERNELS, Toolchain, find_toolchain

CODE, LIBRARY, WEIGHTS = "model.c", "libmodel.so", "model.weights"
"""Files of a variant: emitted code, what it is compiled into, what the library maps."""

HEADER = "include/model.h"

BASELINE = ("load.c", "state.c")
"""Sources that run on any CPU of the machine: they ask what it has before a faster instruction runs."""


def build_library(
    folder: Path, isa: Isa, toolchain: Toolchain | None = None, flags: Sequence[str] = ()
) -> dict[str, str]:
    """Compile ``folder``'s model.c for ``isa``; the settings that its runner and C users need.

    The headers and the runtime's sources are copied beside it, so that the folder can be compiled again.
    Raises: ToolError without a compiler, CompileError if it refuses.
    """
    compiler = find_toolchain(isa) if toolchain is None else toolchain
    shutil.copytree(KERNELS, folder / "kernels", dirs_exist_ok=True)
    shutil.copytree(KERNELS.with_name("include"), folder / "include", dirs_exist_ok=True)
    runtime = [folder / "kernels" / name for name in BASELINE]
    compiler.library(isa, folder / LIBRARY, [folder / CODE], runtime, flags)
    return {
        "isa": isa.name,
        "weights": WEIGHTS,
        IN_PLACE: "1",
        "compiler": compiler.version(),
        "cflags": "-I${dir}/include",
        "libs": "-L${dir} -lmodel -Wl,-rpath,${dir}",
    }
