"""Kernels in device code: registers, shared memory, machine instructions."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ToolError
from .cuda_toolkit import tool

_MAGIC = (0xBA55ED50).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class DeviceKernel:
    """A kernel as compiled, with bytes: ``shared`` of a block, ``stack`` and ``spilled`` of a thread.

    ``dynamic``: shared memory that the host asks for at launch; None: code does not tell.
    """

    name: str
    arch: str
    registers: int
    shared: int
    stack: int = 0
    spilled: int = 0
    dynamic: int | None = None


def kernels_in(listing: str) -> list[DeviceKernel]:
    """The kernels that ``nvcc --resource-usage`` tells of.

    >>> kernels_in('''ptxas info    : Compiling entry function 'k' for 'sm_90'
    ... ptxas info    : Function properties for k
    ...     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
    ... ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem''')
    [DeviceKernel(name='k', arch='sm_90', registers=40, shared=2048, stack=8, spilled=4, dynamic=None)]
    """
    found = []
    for part in re.split(r"Compiling entry function ", listing)[1:]:
        head = re.match(r"'(?P<name>[^']+)' for '(?P<arch>[^']+)'", part)
        used = re.search(r"Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?", part)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", part)
        if head is None or used is None:
            continue
        stack, spilled = (int(frame[1]), int(frame[2])) if frame else (0, 0)
        registers, shared = int(used[1]), int(used[2] or 0)
        found.append(DeviceKernel(head["name"], head["arch"], registers, shared, stack, spilled))
    return found


def without_dynamic(kernels: Iterable[DeviceKernel], code: str) -> list[DeviceKernel]:
    """The kernels, those whose CUDA C++ declares no dynamic shared memory with none of it."""
    parts = code.split('extern "C" __global__ ')
    names = (re.match(r"void (?:__launch_bounds__\(\d+\) )?(\w+)\(", part) for part in parts[1:])
    own = {n[1] for n, p in zip(names, parts[1:], strict=True) if n is not None and "extern __shared__" in p}
    return [k if k.name in own else replace(k, dynamic=0) for k in kernels]


def with_dynamic(kernels: Iterable[DeviceKernel], module: Any) -> list[DeviceKernel]:
    """The kernels, those of our own with their dynamic shared memory; ``module``: the IRModule compiled."""
    known = {
        f"{symbol.name_hint}_kernel": int(function.attrs["shared_memory"])
        for symbol, function in module.functions.items()
        if function.attrs is not None and "shared_memory" in function.attrs
    }
    return [replace(k, dynamic=known.get(k.name, k.dynamic)) for k in kernels]


def fatbins_in(library: Path) -> list[bytes]:
    """The fatbins in a library or any other file: a header of 16 bytes tells how long each is."""
    data, found, at = library.read_bytes(), [], 0
    while (at := data.find(_MAGIC, at)) >= 0:
        header = int.from_bytes(data[at + 6 : at + 8], "little")
        size = int.from_bytes(data[at + 8 : at + 16], "little")
        if header == 16 and at + header + size <= len(data):
            found.append(data[at : at + header + size])
            at += header + size
        else:
            at += 4
    return found


def device_kernels(library: Path) -> list[DeviceKernel]:
    """Kernels in a library with registers and static shared memory. Raises: ToolError without cuobjdump."""
    found = []
    for text in _dumped(library, "-res-usage"):
        arch = ""
        for line in text.splitlines():
            arch = (re.search(r"arch = (sm_\w+)", line) or [None, arch])[1] or arch
            if match := re.match(r"\s*Function (\S+):", line):
                name = match[1]
            elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
                registers, stack, shared, local = map(int, match.groups())
                found.append(DeviceKernel(name, arch, registers, shared, stack, local))
    return found


def instructions(library: Path) -> dict[str, list[str]]:
    """Kernel → its machine instructions' names, such as ``HMMA.16816.F32``. Raises: ToolError."""
    found: dict[str, list[str]] = {}
    for text in _dumped(library, "-sass"):
        current: list[str] = []
        for line in text.splitlines():
            if match := re.match(r"\s*Function : (\S+)", line):
                current = found.setdefault(match[1], [])
            elif match := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]+)", line):
                current.append(match[1])
    return found


def _dumped(library: Path, option: str) -> Iterator[str]:
    fix = "install the CUDA toolkit, or pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    program = tool("cuobjdump", fix)
    beside = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    for fatbin in fatbins_in(library):
        with tempfile.NamedTemporaryFile(suffix=".fatbin") as file:
            file.write(fatbin)
            file.flush()
            done = subprocess.run(
                [program, option, file.name], capture_output=True, text=True, check=False, env=beside
            )
        if done.returncode:
            raise ToolError(
                str(program), f"failed: {(done.stderr or done.stdout).strip().splitlines()[0]}", fix
            )
        yield done.stdout
