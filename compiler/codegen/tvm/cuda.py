"""CUDA code ahead of time: nvcc makes it, with or without a GPU.

TVM asks for device code while it builds a module. Under ``ahead_of_time`` the answer is nvcc's fatbin: the
target's machine code, and its PTX for later GPUs. Without a driver TVM's CUDA runtime does not load and TVM
would leave the source in the library, to be compiled wherever it is opened: see cuda_runtime.py.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import CompileError, ToolError
from ...options import Target
from .cuda_listing import DeviceKernel, kernels_in, without_dynamic
from .cuda_runtime import load_runtime
from .cuda_toolkit import find_nvcc
from .target import DEFAULT_ARCH, spelled
from .versions import require_ffi, require_tvm

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


@dataclass(slots=True)
class Compiled:
    """What ``ahead_of_time`` made so far: ``kernels`` in order, ``sources`` in CUDA C++."""

    kernels: list[DeviceKernel] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


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
        made.kernels.extend(without_dynamic(kernels_in(listing), code))
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
