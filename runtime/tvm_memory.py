"""A CUDA device's memory under TVM: buffers of its own, runs over them, copies by CUDA's runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnx_ir as ir

from ..compiler.program import dtype_name
from ..compiler.reference import Array
from .device_memory import Buffer
from .taps import AFTER
from .tvm_device import CudaDevice

_ON_DEVICE = 3
"""cudaMemcpyKind: from device to device."""


@dataclass(frozen=True, slots=True)
class DeviceBinding:
    """Arguments of a run, and where its outputs are copied to; None: nobody wants it."""

    arguments: tuple[Any, ...]
    outputs: tuple[Any | None, ...]


class TvmMemory:
    """The memory of a runner's device.

    ``call``: runs the entry on tensors. ``inputs``, ``outputs``: its names in order; of outputs those that it
    returns, behind which it returns how long rows are after one more token. ``state``: input → output of
    what it updates in place. Runs are not captured: TVM allocates while it runs.
    """

    captures = False

    def __init__(
        self, device: CudaDevice, call: Callable[[tuple[Any, ...]], Any], inputs: Sequence[str],
        outputs: Sequence[str], state: Mapping[str, str], place: str,
    ) -> None:  # fmt: skip
        self._device, self._call, self._place = device, call, place
        self._inputs, self._outputs, self._state = tuple(inputs), (*outputs, AFTER), dict(state)

    def empty(self, shape: Sequence[int], dtype: ir.DataType) -> Buffer:
        """A new buffer of zeros. Raises: DeviceError if there is no room."""
        with self._device.translated():
            tensor = self._device.empty(shape, dtype_name(dtype))
            buffer = Buffer(tensor, tensor.data_ptr(), tuple(shape), dtype)
            self._cleared(buffer)
        return buffer

    def write(self, buffer: Buffer, array: Array) -> None:
        """Copy ``array`` into a whole buffer, which stays where it is."""
        with self._device.translated():
            self._device.write(array, self._tensor(buffer))

    def read(self, buffer: Buffer) -> Array:
        """A copy of a whole buffer, once every run before is over."""
        with self._device.translated():
            return self._device.read([self._tensor(buffer)])[0]

    def grown(self, old: Buffer, new: Buffer) -> None:
        """Copy ``old`` to the beginning of axis 2 of ``new``; the rest of it becomes zeros."""
        rows, width = old.shape[0] * old.shape[1], old.shape[3] * int(old.dtype.itemsize)
        narrow, wide = old.shape[2] * width, new.shape[2] * width
        with self._device.translated():
            self._cleared(new)
            self._cuda("cudaMemcpy2DAsync", new.address, wide, old.address, narrow, narrow, rows)

    def gathered(self, old: Buffer, new: Buffer, rows: Sequence[int]) -> None:
        """Copy ``rows`` of ``old`` to ``new``, in that order."""
        with self._device.translated():
            for place, row in enumerate(rows):
                source, target = old.rows(row, row + 1), new.rows(place, place + 1)
                self._cuda("cudaMemcpyAsync", target.address, source.address, source.nbytes)

    def bind(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> DeviceBinding:
        """Inputs and the wanted outputs bound to where they lie; state is the same buffer in both."""
        # kernels divide by their sizes: for nothing selected, of which nothing is wanted, the first is
        alone = outputs.keys() <= set(self._state.values())
        given = {name: self._some(buffer) if alone else buffer for name, buffer in inputs.items()}
        arguments = tuple(self._tensor(given[name]) for name in self._inputs)
        wanted = (outputs.get(name) for name in self._outputs)
        return DeviceBinding(arguments, tuple(None if b is None else self._tensor(b) for b in wanted))

    def run(self, binding: DeviceBinding, graph: int | None = None) -> None:
        """Run over a binding; nothing waits for it.

        Raises: CompileError if a kernel fails, DeviceError if the device does.
        """
        with self._device.translated():
            found = self._call(binding.arguments)
            for target, tensor in zip(binding.outputs, found, strict=True):
                if target is not None:
                    self._device.copy(tensor, target)

    def _some(self, buffer: Buffer) -> Buffer:
        return buffer if buffer.nbytes else self.empty([max(n, 1) for n in buffer.shape], buffer.dtype)

    def _tensor(self, buffer: Buffer) -> Any:
        return self._device.at(buffer.owner, buffer.address, buffer.shape, dtype_name(buffer.dtype))

    def _cleared(self, buffer: Buffer) -> None:
        if buffer.nbytes:
            self._cuda("cudaMemsetAsync", buffer.address, 0, buffer.nbytes)

    def _cuda(self, name: str, *arguments: int) -> None:
        """Start a copy or a filling on the stream that all others are ordered with."""
        kind = () if name == "cudaMemsetAsync" else (_ON_DEVICE,)
        if error := getattr(self._library, name)(*arguments, *kind, None):
            said = self._library.cudaGetErrorString(error).decode()
            raise RuntimeError(f"CUDA: {said}")

    @cached_property
    def _library(self) -> Any:
        """CUDA's runtime, which is loaded."""
        library = ctypes.CDLL("libcudart.so.13")
        library.cudaGetErrorString.restype = ctypes.c_char_p
        at, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        library.cudaMemsetAsync.argtypes = [at, number, size, at]
        library.cudaMemcpyAsync.argtypes = [at, at, size, number, at]
        library.cudaMemcpy2DAsync.argtypes = [at, size, at, size, size, size, number, at]
        return library
