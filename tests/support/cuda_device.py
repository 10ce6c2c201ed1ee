"""A CUDA device that is none, for TVM's whole path: libcuda and libcudart of ours, kernels by g++.

Loaded into a process, it stays: tests of it run in one of their own (``tests/tvm/test_cuda_device.py``).
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from enum import IntEnum
from functools import cache
from pathlib import Path

from miaotui.compiler.codegen.tvm import cuda
from miaotui.compiler.codegen.tvm.cuda_toolkit import find_nvcc, toolkit_of

from .cuda_on_cpu import FLAGS, included, translated

HERE = Path(__file__).parent

_KERNEL = re.compile(
    r'^extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\) \{\n.*?^\}\n',
    re.MULTILINE | re.DOTALL,
)
_WAITS = re.compile(r"__sync|__shfl|from_lane|ldmatrix|copies_|mma<")


class Count(IntEnum):
    """What the device has done so far: copies by direction, their bytes, …"""

    to_device = 0
    to_host = 1
    on_device = 2
    bytes_to_device = 3
    bytes_to_host = 4
    launches = 5
    syncs = 6
    allocations = 7
    replays = 8


class Device:
    """The device of this process."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.device_count.restype = library.device_bytes.restype = ctypes.c_longlong
        library.device_limit.argtypes = [ctypes.c_size_t]

    def count(self, what: Count) -> int:
        """How many so far."""
        return int(self._library.device_count(int(what)))

    def counts(self) -> dict[Count, int]:
        """All of them."""
        return {what: self.count(what) for what in Count}

    @property
    def held(self) -> int:
        """Bytes allocated."""
        return int(self._library.device_bytes())

    def limit(self, size: int) -> None:
        """Bytes of memory that it has."""
        self._library.device_limit(size)

    def fail(self, error: int) -> None:
        """What every wait ends with from now on; 0: success."""
        self._library.device_fails(error)


@cache
def device(folder: Path) -> Device:
    """The device, in this process from now on; nvcc's work is g++'s. ``folder``: for what is built."""
    include = toolkit_of(find_nvcc()) / "include"
    runtime, driver = folder / "libcudart.so.13", folder / "libcuda.so.1"
    script = folder / "versions"
    script.write_text(f"{runtime.name} {{ global: *; }};\n")
    _build(
        HERE / "cuda_device.cpp",
        runtime,
        f"-I{include}",
        f"-Wl,-soname,{runtime.name},--version-script={script}",
    )
    (folder / "driver.cpp").write_text('extern "C" int cuTensorMapEncodeTiled() { return 801; }\n')
    _build(folder / "driver.cpp", driver, f"-Wl,-soname,{driver.name}")
    made = ctypes.CDLL(str(runtime), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(driver), ctypes.RTLD_GLOBAL)

    def by_host(nvcc: Path, code: str, arch: str) -> tuple[bytes, str]:
        library = host_library(code, folder)
        return bytes.fromhex("50ed55ba01001000") + len(library).to_bytes(8, "little") + library, ""

    cuda.fatbin_of = by_host
    return Device(made)


def host_library(code: str, folder: Path) -> bytes:
    """A library with all kernels of CUDA C++, for ``cuda_device.cpp``."""
    parts = ['#include "cuda_on_cpu.h"\n']
    for found in _KERNEL.finditer(code):
        text = translated(re.sub(r"__shared__ (alignas\(\d+\))", r"\1 static", found[0]))
        types = [re.sub(r"__restrict__", "", p).rsplit(" ", 1)[0].strip() for p in found[2].split(",") if p]
        name, given = found[1], ", ".join(f"*({t} *)a[{n}]" for n, t in enumerate(types))
        sizes = ", ".join([*(f"(int)sizeof({t})" for t in types), "0"])
        parts.append(
            f"{text}\nstatic void {name}_call(void **a) {{ {name}({given}); }}\n"
            f"static const int {name}_sizes[] = {{{sizes}}};\n"
            f'extern "C" const HostKernel {name}_host = '
            f"{{{name}_call, {int(bool(_WAITS.search(text)))}, {len(types)}, {name}_sizes}};\n"
        )
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text("".join(parts))
    _build(source, library, *included())
    return library.read_bytes()


def _build(source: Path, library: Path, *options: str) -> None:
    done = subprocess.run(
        ["g++", *FLAGS, "-shared", str(source), "-o", str(library), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[:2000]
