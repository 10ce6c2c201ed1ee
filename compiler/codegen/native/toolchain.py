"""The C compiler: found, asked for an instruction set, its refusals in our words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...errors import CompileError, ToolError

KERNELS = Path(__file__).with_name("kernels")
"""Folder of the C headers that emitted code includes."""

FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wall")
"""Without -ffast-math: NaN and infinity keep their meaning, sums their order."""

QUIET = ("-Wextra", "-Wno-psabi", "-Wno-unused-function")

_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A C compiler by its command: ``("gcc",)`` or ``(python, "-m", "ziglang", "cc")``."""

    command: tuple[str, ...]

    def compile(self, sources: Sequence[Path], output: Path, flags: Sequence[str] = ()) -> None:
        """Compile ``sources`` into the shared library ``output``.

        Raises: CompileError with the compiler's first message if it refuses.
        """
        command = [*self.command, *FLAGS, *QUIET, *flags, f"-I{KERNELS}", "-shared", "-o", str(output)]
        command += [*map(str, sources), "-lm", "-lpthread"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise CompileError(self.command[0], f"took more than {_SECONDS} s") from error
        if done.returncode:
            raise CompileError(self.command[0], f"refused the emitted code: {done.stderr.strip()[:2000]}")


def find_toolchain() -> Toolchain:
    """``$CC``, ``cc``, ``gcc``, ``clang``, else the ziglang package. Raises: ToolError if there is none."""
    for name in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and shutil.which(name.split()[0]):
            return Toolchain(tuple(name.split()))
    if find_spec("ziglang") is not None:
        return Toolchain((sys.executable, "-m", "ziglang", "cc"))
    raise ToolError("C compiler", "none was found", "apt install gcc, or pip install ziglang")
