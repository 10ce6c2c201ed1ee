"""Runs an entry of a library that TVM compiled for CUDA: weights and state stay on the device."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np

from ..compiler.errors import CompileError, InternalError
from ..compiler.reference import Array, Arrays
from .device import described, on_gpu
from .device_errors import device_failure
from .tensors import address_of
from .tvm import Row, TvmModel, TvmRunner, lock, mapped, region
from .tvm_device import CPU, CUDA, CudaDevice, fits, stream_of_torch
from .tvm_memory import TvmMemory
from .validate import checked


class _Resident:
    """A weight on the device, for all runners of its file."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


_resident: WeakValueDictionary[tuple[object, ...], _Resident] = WeakValueDictionary()
"""By file, place in it, dtype and shape."""


@dataclass(frozen=True, slots=True)
class HostBinding:
    """Host arrays of a run: inputs by name, and outputs, where they are wanted."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class CudaRunner(TvmRunner):
    """One entry on the first CUDA device; runs from several threads wait for each other.

    Host arrays are copied in and out; tensors on the device are taken and given where they lie, and only
    reading on the host waits for it. Runners of one weight file share its weights on the device.
    Raises: ToolError without TVM's runtime, driver or device, or for one that can't run the library,
    DeviceError if the device has no room, ArtifactError if a file is damaged.
    """

    device = "cuda"
    # the virtual machine computes sizes on the CPU
    _devices: ClassVar[tuple[int, ...]] = (CUDA, CPU)

    def _started(self, model: TvmModel) -> Any:
        self._cuda = CudaDevice(model.place)
        fits(model.target, self._cuda.capability, model.place)
        self._held: list[_Resident] = []
        self._staged: dict[str, Any] = {}
        return self._cuda.ffi

    def _not_loaded(self, model: TvmModel, text: str) -> CompileError:
        return device_failure(text, model.place, "TVM") or super()._not_loaded(model, text)

    def _resident(self, model: TvmModel, table: Sequence[Row]) -> tuple[Any, ...]:
        if not table:
            return ()
        memory, file = mapped(model), _identity(model)
        with lock, self._cuda.translated():
            for offset, length, dtype, shape in table:
                key = (*file, offset, dtype, tuple(shape))
                found = _resident.get(key)
                if found is None:
                    found = _resident[key] = _Resident(self._cuda.empty(shape, dtype))
                    self._cuda.write(region(memory, offset, length, dtype, shape), found.tensor)
                self._held.append(found)
            self._cuda.wait()  # the file may go away
        return tuple(found.tensor for found in self._held)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name; ``inputs`` are arrays or tensors by name.

        If a tensor lies on the device, none is copied and the outputs are tensors there too: torch's if torch
        is loaded, else TVM's, which speak dlpack. Raises: InputError listing every input that does not fit,
        DeviceError if the device fails, CompileError if a kernel does.
        """
        if any(map(on_gpu, inputs.values())):
            return self.run_device(inputs)
        return self.run_arrays(self.check(inputs))

    def run_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """``run`` on tensors where they lie; what is given as state stays as it was. Raises: as ``run``."""
        stand_ins = {n: v if isinstance(v, np.ndarray) else described(v) for n, v in inputs.items()}
        checked(stand_ins, self.inputs, self._dims)
        stream = stream_of_torch(sys.modules)
        if stream is not None:
            stream.synchronize()
        with lock, self._cuda.translated():
            given = {spec.name: self._cuda.taken(spec, inputs[spec.name]) for spec in self.inputs}
            for name in self._state:
                copy = self._cuda.empty(given[name].shape, str(given[name].dtype))
                self._cuda.copy(given[name], copy)
                given[name] = copy
            found = self._outputs(given)
            if stream is not None:
                self._cuda.wait()
        torch = sys.modules.get("torch")
        if torch is None or not torch.cuda.is_available():
            return found
        return {name: torch.from_dlpack(tensor) for name, tensor in found.items()}

    def run_arrays(self, arrays: Arrays) -> Arrays:
        """``run`` without the checks, for inputs that ``check`` returned. State is copied."""
        with lock, self._cuda.translated():
            found = self._outputs({name: self._sent(name, arrays[name]) for name in self._names})
            return dict(zip(found, self._cuda.read(list(found.values())), strict=True))

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Any:
        """Every input and the wanted outputs bound to host memory; state is the same array in both."""
        for name, output in self._state.items():
            if output in outputs and address_of(outputs[output]) != address_of(inputs[name]):
                raise InternalError(
                    f"{self._place}: state {name!r} is updated in place, {output!r} is not it"
                )
        states = {output: inputs[name] for name, output in self._state.items()}
        return HostBinding(dict(inputs), {**outputs, **states})

    def run_bound(self, binding: Any) -> None:
        """Run over the memory of ``binding``. Raises: as ``run``."""
        found = self.run_arrays(dict(binding.inputs))
        for name, wanted in binding.outputs.items():
            wanted[...] = found[name]

    @cached_property
    def memory(self) -> TvmMemory:
        """The device's memory, over which the entry runs without the host."""
        plain = [spec.name for spec in self.outputs if spec.name not in set(self._state.values())]
        return TvmMemory(self._cuda, self._call, self._names, plain, self._state, self._place)

    def _outputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors of all outputs; state is what was given for it."""
        results = iter(self._call(tuple(given[name] for name in self._names)))
        kept = {output: given[name] for name, output in self._state.items()}
        return {spec.name: kept[spec.name] if spec.name in kept else next(results) for spec in self.outputs}

    def _sent(self, name: str, array: Array) -> Any:
        """A host array on the device, in memory that the next array of its shape will have."""
        tensor = self._staged.get(name)
        if tensor is None or tuple(tensor.shape) != array.shape:
            tensor = self._staged[name] = self._cuda.empty(array.shape, array.dtype.name)
        self._cuda.write(array, tensor)
        return tensor

    def _failed(self, text: str) -> CompileError:
        return device_failure(text, self._place, "TVM") or super()._failed(text)

    def close(self) -> None:
        """Free what it holds of the device's memory."""
        super().close()
        self._held.clear()
        self._staged.clear()
        self.__dict__.pop("memory", None)


def _identity(model: TvmModel) -> tuple[object, ...]:
    """Of the weight file, whatever lies at its path by now."""
    held = model.held_weights
    facts = os.fstat(held.fileno()) if held is not None else Path(str(model.weights)).stat()
    return facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_size
