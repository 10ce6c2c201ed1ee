"""CUDA code ahead of time: nvcc makes it, with or without a GPU, and what it made can be listed.

TVM asks for device code while it builds a module. Under ``ahead_of_time`` the answer is nvcc's fatbin: the
target's machine code, and its PTX for later GPUs. Without a driver TVM's CUDA runtime does not load and TVM
would leave the source in the library, to be compiled wherever it is opened; so stand-ins of the libraries
that the machine lacks are put in its way. They are there to be linked: nothing can run on them.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import CompileError, InternalError, ToolError
from ...options import Target
from .target import spelled
from .versions import require_ffi, require_tvm

DEFAULT_ARCH = "sm_80"

_FLAGS = (
    "-O3",
    "--expt-relaxed-constexpr",
    "-U__CUDA_NO_HALF_OPERATORS__",
    "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_OPERATORS__",
    "-U__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT162_OPERATORS__",
    "-U__CUDA_NO_BFLOAT162_CONVERSIONS__",
)
"""As TVM passes them, but without ``--use_fast_math``."""

_DRIVER = [
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
]
"""What TVM's CUDA runtime links of libcuda; each answers CUDA_ERROR_STUB_LIBRARY."""

TOOLKIT = Path("/usr/local/cuda")
"""Where the toolkit is installed by default."""


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


@dataclass(slots=True)
class Compiled:
    """What ``ahead_of_time`` made so far: ``kernels`` in order, ``sources`` in CUDA C++."""

    kernels: list[DeviceKernel] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


def find_nvcc() -> Path:
    """The compiler of ``$CUDA_HOME``, ``$CUDA_PATH``, on PATH or in ``TOOLKIT``. Raises: ToolError."""
    return _tool("nvcc", "install the CUDA toolkit, or set CUDA_HOME to where it is")


@cache
def toolkit_of(nvcc: Path) -> Path:
    """The folder of the toolkit that an nvcc belongs to, which may be a script elsewhere."""
    done = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    found = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    return Path(found[1]).resolve() if found else nvcc.resolve().parents[1]


def _tool(name: str, fix: str) -> Path:
    homes = [Path(h) for v in ("CUDA_HOME", "CUDA_PATH") if (h := os.environ.get(v))]
    packages = [Path(p) / "nvidia" / "cu13" for p in sys.path]
    on_path = shutil.which(name)
    places = [*(h / "bin" / name for h in homes), *([Path(on_path)] if on_path else [])]
    places += [p / "bin" / name for p in (TOOLKIT, *packages)]
    for place in places:
        if place.is_file():
            return place
    raise ToolError(name, "was not found, without it there is no device code", fix)


@contextmanager
def ahead_of_time(target: Target) -> Iterator[Compiled]:
    """While it lasts TVM's device code is compiled by nvcc for ``target``.

    Raises: ToolError without nvcc or with one that does not know the architecture, CompileError if the code
    does not compile.
    """
    arch = target.arch or DEFAULT_ARCH
    nvcc = find_nvcc()
    load_runtime(nvcc)
    made = Compiled()
    failed: list[CompileError] = []

    def compile_device(text: str) -> bytes:
        code = with_one_shared_array(text)
        made.sources.append(code)
        try:
            fatbin, listing = fatbin_of(nvcc, code, arch)
        except CompileError as error:
            failed.append(error)
            raise
        made.kernels.extend(kernels_in(listing))
        return fatbin

    ffi = require_ffi()
    name = "tvm_callback_cuda_compile"
    before = ffi.get_global_func(name, allow_missing=True)
    ffi.register_global_func(name, compile_device, override=True)
    try:
        with require_tvm().target.Target(spelled(target)):
            yield made
    except Exception:
        if failed:  # TVM passes on the text of an error of Python's, not its type
            raise failed[0] from None
        raise
    finally:
        if before is not None:
            ffi.register_global_func(name, before, override=True)


def with_one_shared_array(code: str) -> str:
    """CUDA C++ in which all kernels declare their dynamic shared memory alike.

    TVM names it after a buffer and gives it the buffer's type; in C++ arrays of one name have one type.

    >>> with_one_shared_array("extern __shared__ __align__(64) half _ptr[];")
    'extern __shared__ __align__(128) unsigned char shared_array[]; half *_ptr = (half *)shared_array;'
    """
    return re.sub(
        r"extern __shared__ __align__\(\d+\) (\w+) (\w+)\[\];",
        r"extern __shared__ __align__(128) unsigned char shared_array[]; \1 *\2 = (\1 *)shared_array;",
        code,
    )


def fatbin_of(nvcc: Path, code: str, arch: str) -> tuple[bytes, str]:
    """Device code of CUDA C++ for ``arch`` and as PTX, and what the assembler said of each kernel."""
    virtual = arch.replace("sm_", "compute_")
    # PTX of an architecture with a letter runs nowhere else: no use to later GPUs.
    codes = arch if arch[-1].isalpha() else f"[{arch},{virtual}]"
    with tempfile.TemporaryDirectory(prefix="miaotui-") as folder:
        source, output = Path(folder, "kernels.cu"), Path(folder, "kernels.fatbin")
        source.write_text(code, encoding="utf-8")
        done = subprocess.run(
            [nvcc, "--fatbin", *_FLAGS, "-gencode", f"arch={virtual},code={codes}", "--resource-usage",
             source, "-o", output],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            said = [m for m in done.stderr.splitlines() if "error" in m or "fatal" in m] or ["no message"]
            if any("gpu architecture" in m or "not defined for option" in m for m in said):
                raise ToolError(
                    str(nvcc), f"does not compile for {arch}", "name another with --target cuda:sm_NN"
                )
            place = Path(tempfile.mkdtemp(prefix="miaotui-")) / "kernels.cu"
            place.write_text(code, encoding="utf-8")
            raise CompileError(
                str(place), f"nvcc does not compile it: {said[0]}", "please report it with the file"
            )
        return output.read_bytes(), done.stderr + done.stdout


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


def with_dynamic(kernels: Iterable[DeviceKernel], module: Any) -> list[DeviceKernel]:
    """The kernels, those of our own with their dynamic shared memory; ``module``: the IRModule compiled."""
    known = {
        f"{symbol.name_hint}_kernel": int(function.attrs["shared_memory"])
        for symbol, function in module.functions.items()
        if function.attrs is not None and "shared_memory" in function.attrs
    }
    return [replace(k, dynamic=known.get(k.name, k.dynamic)) for k in kernels]


# what a library holds


_MAGIC = (0xBA55ED50).to_bytes(4, "little")


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
    tool = _tool("cuobjdump", fix)
    beside = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    for fatbin in fatbins_in(library):
        with tempfile.NamedTemporaryFile(suffix=".fatbin") as file:
            file.write(fatbin)
            file.flush()
            done = subprocess.run(
                [tool, option, file.name], capture_output=True, text=True, check=False, env=beside
            )
        if done.returncode:
            raise ToolError(str(tool), f"failed: {(done.stderr or done.stdout).strip().splitlines()[0]}", fix)
        yield done.stdout


# TVM's runtime for CUDA


@cache
def load_runtime(nvcc: Path) -> None:
    """Load TVM's CUDA runtime, on stand-ins where the machine has no driver. Raises: ToolError."""
    tvm = require_tvm()
    if require_ffi().get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None:
        return
    runtime = Path(str(tvm.__file__)).parent / "lib" / "libtvm_runtime_cuda.so"
    if not runtime.is_file():
        raise ToolError("apache-tvm", f"has no {runtime.name}", "install a build of TVM with CUDA")
    _load_cudart(nvcc)
    with tempfile.TemporaryDirectory(prefix="miaotui-") as folder:
        try:
            ctypes.CDLL("libcuda.so.1")
        except OSError:
            ctypes.CDLL(str(_stand_in(nvcc, Path(folder))))
        try:
            ctypes.CDLL(str(runtime))
        except OSError as error:
            raise ToolError(runtime.name, f"does not load: {error}", "install the CUDA toolkit 13") from error
    if require_ffi().get_global_func("ffi.Module.create.cuda", allow_missing=True) is None:
        raise InternalError(f"{runtime} is loaded, and TVM knows no CUDA modules")


def _load_cudart(nvcc: Path) -> None:
    home = toolkit_of(nvcc)
    places = [home / sub / "libcudart.so.13" for sub in ("lib64", "lib", "targets/x86_64-linux/lib")]
    places += [Path(p) / "nvidia" / "cu13" / "lib" / "libcudart.so.13" for p in sys.path]
    for place in ("libcudart.so.13", *(str(p) for p in places if p.is_file())):
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return
    raise ToolError("libcudart.so.13", "was not found", "install the CUDA toolkit 13")


def _stand_in(nvcc: Path, folder: Path) -> Path:
    """A libcuda.so.1 whose every function fails."""
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text("\n".join(f"int {name}(void) {{ return 34; }}" for name in _DRIVER) + "\n")
    done = subprocess.run(
        [nvcc, "--shared", "--cudart", "none", "-Xcompiler", "-fPIC", "-Xlinker", f"-soname,{library.name}",
         source, "-o", library],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[0]
        raise ToolError(str(nvcc), f"does not build a library: {said}", "install g++")
    return library
