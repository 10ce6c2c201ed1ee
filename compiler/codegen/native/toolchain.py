"""The C compiler: found, asked for an instruction set, its refusals in our words."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...errors import CompileError, ToolError
from ..isa import Isa

KERNELS = Path(__file__).with_name("kernels")
"""Folder of the C headers that emitted code includes."""

FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wall")
"""Without -ffast-math: NaN and infinity keep their meaning, sums their order."""

QUIET = ("-Wextra", "-Wno-psabi", "-Wno-unused-function")

LINK = ("-shared", "-fPIC", "-Wl,-soname,libmodel.so", "-Wl,-Bsymbolic")
"""Bsymbolic: two models in one process call each their own functions."""

LIBRARIES = ("-lm", "-lpthread")

_SECONDS = 900


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A C compiler by its command: ``("gcc",)`` or ``(python, "-m", "ziglang", "cc")``."""

    command: tuple[str, ...]

    @property
    def is_zig(self) -> bool:
        """Whether it is zig, which compiles for every machine and has its own names of CPUs."""
        return "ziglang" in self.command or Path(self.command[0]).name == "zig"

    @property
    def name(self) -> str:
        """How a report calls it: ``gcc``, ``zig cc``."""
        return "zig cc" if self.is_zig else " ".join(self.command)

    def version(self) -> str:
        """The first line it says about itself. Raises: ToolError if it can't be started."""
        line = self._run(["--version"]).stdout.partition("\n")[0].strip()
        return f"{self.name}: {line}" if self.is_zig else line

    def compile(self, sources: Sequence[Path], output: Path, flags: Sequence[str] = ()) -> None:
        """Compile ``sources`` into the shared library ``output``.

        Raises: CompileError with the compiler's first message if it refuses.
        """
        command = [*FLAGS, *QUIET, *flags, f"-I{KERNELS}", "-shared", "-o", str(output), *map(str, sources)]
        self._run([*command, *LIBRARIES])

    def library(
        self,
        isa: Isa,
        output: Path,
        sources: Sequence[Path],
        baseline: Sequence[Path] = (),
        flags: Sequence[str] = (),
    ) -> None:
        """Link the shared library ``output`` from ``sources``, compiled for ``isa``, and ``baseline``.

        The latter are compiled for any CPU of the machine, so that they can refuse one that lacks ``isa``.
        Raises: CompileError with the compiler's first message if it refuses.
        """
        common = [*FLAGS, *QUIET, "-fvisibility=hidden", *flags]
        with tempfile.TemporaryDirectory(prefix="miaotui-") as scratch:
            objects = []
            for source, cpu in [
                *((s, self.cpu(isa)) for s in sources),
                *((s, self.any(isa)) for s in baseline),
            ]:
                objects.append(str(Path(scratch, f"{source.stem}.o")))
                self._run([*common, *cpu, "-c", str(source), "-o", objects[-1]])
            self._run([*LINK, *self.any(isa), *flags, *objects, "-o", str(output), *LIBRARIES])

    def cpu(self, isa: Isa) -> tuple[str, ...]:
        """Flags that let the compiler use what ``isa`` has."""
        if self.is_zig:
            return ("-target", isa.triple, f"-mcpu={isa.zig}", "-fno-sanitize=undefined")
        return isa.flags

    def any(self, isa: Isa) -> tuple[str, ...]:
        """Flags for every CPU of the same machine as ``isa``'s."""
        return ("-target", isa.triple, "-mcpu=baseline", "-fno-sanitize=undefined") if self.is_zig else ()

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = [*self.command, *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise CompileError(self.name, f"took more than {_SECONDS} s") from error
        except OSError as error:
            raise ToolError(self.name, f"can't be started: {error.strerror}", _INSTALL) from error
        if done.returncode:
            raise CompileError(self.name, f"refused the emitted code: {done.stderr.strip()[:2000]}")
        return done


_INSTALL = "apt install gcc, or pip install ziglang"


def find_toolchain(isa: Isa | None = None) -> Toolchain:
    """``$CC``, ``cc``, ``gcc``, ``clang``, else the ziglang package, which alone compiles for other machines.

    Raises: ToolError if there is none.
    """
    is_foreign = isa is not None and isa.machine != platform.machine()
    for name in () if is_foreign else (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        if name and shutil.which(name.split()[0]):
            return Toolchain(tuple(name.split()))
    if find_spec("ziglang") is not None:
        return Toolchain((sys.executable, "-m", "ziglang", "cc"))
    if isa is not None and is_foreign:
        raise ToolError(
            "C compiler", f"none was found that compiles for {isa.machine}", "pip install ziglang"
        )
    raise ToolError("C compiler", "none was found", _INSTALL)
