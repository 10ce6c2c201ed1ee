"""TVM's runtime for CUDA, which TVM needs to embed device code, on machines without a driver as well.

Stand-ins of the libraries that the machine lacks are there to be linked: nothing can run on them.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from ...errors import InternalError, ToolError
from .cuda_toolkit import TOOLKIT, toolkit_of
from .versions import require_ffi, require_tvm

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


@cache
def load_runtime(nvcc: Path) -> None:
    """Load TVM's CUDA runtime, on stand-ins where the machine has no driver. Raises: ToolError."""
    tvm = require_tvm()
    if require_ffi().get_global_func("ffi.Module.create.cuda", allow_missing=True) is not None:
        return
    runtime = Path(str(tvm.__file__)).parent / "lib" / "libtvm_runtime_cuda.so"
    if not runtime.is_file():
        raise ToolError("apache-tvm", f"has no {runtime.name}", "install a build of TVM with CUDA")
    load_cudart(toolkit_of(nvcc))
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


def load_cudart(home: Path = TOOLKIT) -> None:
    """Load CUDA's runtime: by its name, of the toolkit at ``home``, of a package. Raises: ToolError."""
    places = [home / sub / "libcudart.so.13" for sub in ("lib64", "lib", "targets/x86_64-linux/lib")]
    places += [Path(p) / "nvidia" / "cu13" / "lib" / "libcudart.so.13" for p in sys.path]
    for place in ("libcudart.so.13", *(str(p) for p in places if p.is_file())):
        try:
            ctypes.CDLL(place)
        except OSError:
            continue
        return
    fix = "pip install 'nvidia-cuda-runtime>=13,<14', or install the CUDA toolkit 13"
    raise ToolError("libcudart.so.13", "was not found", fix)


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
