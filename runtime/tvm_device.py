"""The CUDA device under TVM's runtime: opened without ``import tvm``, tensors, copies, one wait for all."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..compiler.codegen.tvm.cuda_runtime import load_cudart
from ..compiler.codegen.tvm.target import DEFAULT_ARCH
from ..compiler.errors import CompileError, InputError, InternalError, ToolError
from ..compiler.options import Target
from ..compiler.program import TensorSpec
from ..compiler.reference import Array
from .device import on_gpu
from .device_errors import device_failure
from .dlpack import At
from .tensors import is_torch, to_numpy
from .tvm_tensors import numpy_dtype, runtime, runtime_library, said, tensor_of

CPU, CUDA = 1, 2
"""Types of devices, as dlpack numbers them."""

_EXISTS, _CAPABILITY = 0, 4
"""Attributes of a device, as TVM numbers them."""

_ALIGNMENT = 64
"""Bytes: kernels copy 16 at once, and TVM's vectorized loads are as wide."""


class CudaDevice:
    """The first device that can be seen.

    Raises: ToolError without a driver, a device, the CUDA runtime, or TVM's library for it.
    """

    def __init__(self, place: str) -> None:
        self.ffi, self.place = runtime(), place
        _load(place)
        self._device = self.ffi.device("cuda", 0)
        named = self.ffi.get_global_func
        self._attribute = named("runtime.GetDeviceAttr")
        if not self._attribute(CUDA, 0, _EXISTS):
            raise failed("no CUDA-capable device is detected", place)
        self._allocate = named("runtime.TVMTensorAllocWithScope")
        self._copy = named("runtime.TVMTensorCopyFromTo")
        self._wait = named("runtime.Device_StreamSync")

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability: major, minor."""
        major, minor = str(self._attribute(CUDA, 0, _CAPABILITY)).split(".")
        return int(major), int(minor)

    def empty(self, shape: Sequence[int], dtype: str) -> Any:
        """A new tensor of unknown contents."""
        return self._allocate(self.ffi.Shape(tuple(shape)), self.ffi.dtype(dtype), self._device, None)

    def at(self, owner: Any, address: int, shape: Sequence[int], dtype: str) -> Any:
        """What lies at an address inside another tensor, which it keeps alive."""
        return self.ffi.from_dlpack(At(address, tuple(shape), numpy_dtype(dtype), (CUDA, 0), owner))

    def copy(self, source: Any, target: Any) -> None:
        """Start a copy between tensors of one size, wherever they lie."""
        if 0 not in source.shape:
            self._copy(source, target)

    def write(self, array: Array, target: Any) -> None:
        """Start a copy of an array to the device; CUDA has taken it when this returns."""
        if array.size:
            self._copy(tensor_of(np.require(array, requirements=("C", "W"))), target)

    def read(self, tensors: Sequence[Any]) -> list[Array]:
        """Arrays of tensors on the device, once all that was started before is over."""
        arrays = [np.empty(tuple(t.shape), numpy_dtype(str(t.dtype))) for t in tensors]
        for tensor, array in zip(tensors, arrays, strict=True):
            if array.size:
                self._copy(tensor, tensor_of(array))
        self.wait()
        return arrays

    def wait(self) -> None:
        """Until all that was started is over."""
        self._wait(self._device, 0)

    def taken(self, spec: TensorSpec, value: Any) -> Any:
        """A caller's tensor where it lies on the device; a copy of what lies on the host or unaligned.

        Raises: InputError if it lies on another device or has gaps.
        """
        if not on_gpu(value):
            array = to_numpy(value, spec.dtype)
            found = self.empty(array.shape, array.dtype.name)
            self.write(array, found)
            return found
        if int(value.__dlpack_device__()[1]):
            fact = f"lies on device {int(value.__dlpack_device__()[1])}, not on the first"
            raise InputError(f"input {spec.name!r}", fact, "copy it there")
        value = value.detach().contiguous() if is_torch(value) else value
        tensor = self.ffi.from_dlpack(value)
        if not tensor.is_contiguous():
            raise InputError(f"input {spec.name!r}", "is not contiguous", "give a contiguous copy")
        if tensor.data_ptr() % _ALIGNMENT == 0:
            # the same without an offset, which kernels do not take
            return self.at(tensor, tensor.data_ptr(), tensor.shape, str(tensor.dtype))
        found = self.empty(tensor.shape, str(tensor.dtype))
        self.copy(tensor, found)
        return found

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raises what TVM does as ours: DeviceError or ToolError of the device, else CompileError."""
        try:
            yield
        except CompileError:
            raise
        except Exception as error:  # tvm_ffi raises what CUDA and TVM say as several types
            raise failed(str(error), self.place) from error


def fits(target: Target, capability: tuple[int, int], place: str) -> None:
    """Whether code for ``target`` runs on the device. Raises: ToolError naming both.

    A library holds machine code for its architecture and, if that has no letter, PTX for all later ones.
    """
    arch = (target.arch or DEFAULT_ARCH).removeprefix("sm_")
    number = int(arch.rstrip("af"))
    wanted = divmod(number, 10)
    if arch.endswith("a"):
        runs = capability == wanted
    elif arch.endswith("f"):
        runs = capability[0] == wanted[0] and capability >= wanted
    else:
        runs = capability >= wanted
    if not runs:
        own = f"sm_{capability[0]}{capability[1]}"
        fact = f"was compiled for sm_{arch}, and the device is {own}"
        raise ToolError(place, fact, f"compile it with --target cuda:{own}")


def failed(text: str, place: str) -> CompileError:
    """What TVM and CUDA say as ours."""
    found = device_failure(text, place, "TVM")
    return CompileError(place, f"a kernel failed: {said(text)}") if found is None else found


def _load(place: str) -> None:
    """TVM's runtime for CUDA, after what it links."""
    ffi = runtime()
    name = "device_api.cuda"
    if ffi.get_global_func(name, allow_missing=True) is not None:
        return
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise failed(str(error), place) from error
    load_cudart()
    library = runtime_library("libtvm_runtime_cuda.so")
    if not library.is_file():
        raise ToolError("apache-tvm", f"has no {library.name}", "install a build of TVM with CUDA")
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ToolError(
            library.name, f"can't be loaded: {error}", "install a build of TVM with CUDA 13"
        ) from error
    if ffi.get_global_func(name, allow_missing=True) is None:
        raise InternalError(f"{library} is loaded, and TVM knows no CUDA devices")


def stream_of_torch(modules: Mapping[str, Any]) -> Any:
    """torch's current stream, if it is not the one that CUDA orders with all others; else None."""
    torch = modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    stream = torch.cuda.current_stream()
    return stream if stream.cuda_stream else None
