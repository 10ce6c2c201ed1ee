"""Runs an entry of a library that TVM compiled, with TVM's runtime alone: ``import tvm`` is never needed."""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar, Self, TypeAlias

import numpy as np

from ..compiler.errors import ArtifactError, CompileError, InternalError, ToolError
from ..compiler.manifest import Entry
from ..compiler.options import Target
from ..compiler.program import DimRange, TensorSpec
from ..compiler.reference import Array, Arrays
from .conditions import cores
from .tensors import address_of
from .tvm_inputs import Placed, Staging, aligned_copy, is_aligned
from .tvm_tensors import numpy_dtype, reader_of, runtime, said, tensor_of
from .validate import Form, checked, form_of

PARAMETERS = "parameters"
"""Setting: entry → [offset, bytes, dtype, shape] of what its function takes behind its inputs, as JSON."""

CPU, POOLED = 1, 2
"""TVM's device type, and its allocator that keeps what it frees for the next run."""

_EMBEDDED = 256
"""Bytes up to which an output may be a constant that lies in the library."""

Row: TypeAlias = tuple[int, int, str, Sequence[int]]
"""Of the setting ``parameters``."""

lock = threading.RLock()
"""Held while a kernel runs: a library's memory, and TVM's pool of it, are not for several threads at once."""


@dataclass(frozen=True, slots=True)
class TvmModel:
    """One entry of a library, and the weight file it reads.

    ``parameters``: setting of the variant, what each function takes behind its inputs. ``held_library``,
    ``held_weights``: the same files opened before; used if given, whatever lies at the paths by now.
    ``state``: input → output of every tensor that lives between runs.
    """

    library: Path
    weights: Path | None
    signature: Entry
    parameters: str
    entry: str = "main"
    state: Mapping[str, str] = field(default_factory=dict)
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    target: Target = field(default_factory=Target)
    held_library: BinaryIO | None = None
    held_weights: BinaryIO | None = None
    place: str = "model"

    def open(
        self, threads: int | None = None, taps: Sequence[str] = (), *, resting: bool = False
    ) -> TvmRunner:
        """A runner; the caller closes it. No inner values can be tapped. Raises: as its class."""
        if self.target.device == "cpu":
            return TvmRunner(self, threads)
        from .tvm_cuda import CudaRunner

        return CudaRunner(self, threads)

    def code(self) -> bytes:
        """The library."""
        return self.library.read_bytes()

    def computed(self) -> list[str]:
        """None: what lies between kernels has no name any more."""
        return []


@dataclass(frozen=True, slots=True)
class Binding:
    """Arguments of a run, where its outputs go, and what did not begin at a cache line beside its copy.

    ``updated``: those of ``copied`` that the run writes to.
    """

    arguments: tuple[Any, ...]
    outputs: tuple[Array | None, ...]
    copied: tuple[tuple[Array, Array], ...]
    updated: tuple[tuple[Array, Array], ...]


class TvmRunner:
    """One entry over a mapped weight file; runs from several threads wait for each other.

    ``threads``: workers; None takes the physical cores this process may use.
    Raises: ToolError without TVM's runtime or if this CPU can't run the library, ArtifactError if a file is
    damaged.
    """

    _devices: ClassVar[tuple[int, ...]] = (CPU,)

    def __init__(self, model: TvmModel, threads: int | None = None) -> None:
        self.inputs: Sequence[TensorSpec] = model.signature.inputs
        self.outputs: Sequence[TensorSpec] = model.signature.outputs
        self.threads = cores() if threads is None else threads
        self._state, self._dims, self._place = model.state, model.dims, model.place
        start = time.perf_counter()
        self._ffi = self._started(model)
        self._item = self._ffi.get_global_func("ffi.ArrayGetItem")
        self._names = [spec.name for spec in self.inputs]
        self._kept = {output: name for name, output in self._state.items()}
        plain = [spec for spec in self.outputs if spec.name not in self._kept]
        self._readers = [(number, spec.name, reader_of(spec.dtype)) for number, spec in enumerate(plain)]
        self._staging = Staging()
        self._function, self._weights = self._opened(model)
        self.load_seconds = time.perf_counter() - start
        self._accepted: Form | None = None

    def _started(self, model: TvmModel) -> Any:
        """TVM's runtime, if it runs the library."""
        _runs_here(model.target, model.place)
        return runtime()

    def _opened(self, model: TvmModel) -> tuple[Any, tuple[Any, ...]]:
        # by descriptor: by its name, the loader would take an older file for it that was loaded from the same
        # path before
        self._file: int | None = _descriptor(model)
        load = self._ffi.get_global_func("ffi.Module.load_from_file.so")
        try:
            machine = load(_never_before(self._file), "so")["vm_load_executable"]()
            machine["vm_initialization"](*(n for device in self._devices for n in (device, 0, POOLED)))
            function = machine[model.entry]
        except Exception as error:  # tvm_ffi raises what dlopen and TVM say as several types
            raise self._not_loaded(model, str(error)) from error
        self._machine: Any = machine
        table = json.loads(model.parameters)[model.entry]
        return function, self._resident(model, table)

    def _not_loaded(self, model: TvmModel, text: str) -> CompileError:
        return ArtifactError(str(model.library), f"can't be loaded: {said(text)}", "compile the model again")

    def _resident(self, model: TvmModel, table: Sequence[Row]) -> tuple[Any, ...]:
        """The weights, where the function reads them."""
        memory = mapped(model) if table else np.zeros(0, np.uint8)
        first = address_of(memory)
        self._weight_bytes = range(first, first + memory.nbytes)
        return tuple(tensor_of(region(memory, *row)) for row in table)

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Outputs by name; ``inputs`` are arrays or tensors by name.

        Raises: InputError listing every input that does not fit, CompileError if a kernel fails.
        """
        return self.run_arrays(self.check(inputs))

    def check(self, inputs: Mapping[str, Any]) -> Arrays:
        """``inputs`` as arrays that fit the signature. Raises: InputError listing every one that does not."""
        form = form_of(inputs)
        if form is not None and form == self._accepted:
            return dict(inputs)
        arrays = checked(inputs, self.inputs, self._dims)
        self._accepted = form if all(arrays[name] is inputs[name] for name in arrays) else None
        return arrays

    def run_arrays(self, arrays: Arrays) -> Arrays:
        """``run`` without the checks, for inputs that ``check`` returned. State is copied."""
        with lock:
            given = [self._placed(name, arrays[name]) for name in self._names]
            found = self._call([placed.tensor for placed in given])
            results = {name: self._read(found, index, read, given) for index, name, read in self._readers}
        if not self._kept:
            return results
        states = {name: placed.array for name, placed in zip(self._names, given, strict=True)}
        return {
            spec.name: states[self._kept[spec.name]] if spec.name in self._kept else results[spec.name]
            for spec in self.outputs
        }

    def _placed(self, name: str, array: Array) -> Placed:
        return Placed.of(aligned_copy(array)) if name in self._state else self._staging.placed(name, array)

    def _read(self, found: Any, index: int, read: Callable[[Any], Array], given: Sequence[Placed]) -> Array:
        """An output that is the caller's own: what is a view of an input or a constant is copied."""
        tensor = self._item(found, index)
        address, array = tensor.data_ptr(), read(tensor)
        if (
            array.nbytes <= _EMBEDDED
            or address in self._weight_bytes
            or any(address in placed.addresses for placed in given)
        ):
            return array.copy()
        return array

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Binding:
        """Every input and the wanted outputs bound to memory; state is the same array in both."""
        for name, output in self._state.items():
            if output in outputs and address_of(outputs[output]) != address_of(inputs[name]):
                raise InternalError(
                    f"{self._place}: state {name!r} is updated in place, {output!r} is not it"
                )
        given = {n: inputs[n] if is_aligned(inputs[n]) else aligned_copy(inputs[n]) for n in self._names}
        moved = [name for name in self._names if given[name] is not inputs[name]]
        return Binding(
            tuple(tensor_of(given[name]) for name in self._names),
            tuple(outputs.get(name) for _, name, _ in self._readers),
            tuple((inputs[name], given[name]) for name in moved),
            tuple((inputs[name], given[name]) for name in moved if name in self._state),
        )

    def run_bound(self, binding: Binding) -> None:
        """Run over the memory of ``binding``. Raises: CompileError if a kernel fails."""
        for original, copy in binding.copied:
            copy[...] = original
        found = self._call(binding.arguments)
        for wanted, (index, _, read) in zip(binding.outputs, self._readers, strict=True):
            if wanted is not None:
                wanted[...] = read(self._item(found, index))
        for original, copy in binding.updated:
            original[...] = copy

    def _call(self, arguments: Sequence[Any]) -> Any:
        function = self._function
        if function is None:
            raise CompileError(self._place, "was closed", "open it again")
        with lock:
            _use_threads(self._ffi, self.threads)
            try:
                return function(*arguments, *self._weights)
            except Exception as error:  # tvm_ffi raises TVM's own as several types
                raise self._failed(str(error)) from error

    def _failed(self, text: str) -> CompileError:
        return CompileError(self._place, f"a kernel failed: {said(text)}")

    def close(self) -> None:
        """Free the library's memory."""
        self._function, self._machine, self._weights = None, None, ()
        self._staging.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _runs_here(target: Target, place: str) -> None:
    from ..compiler.codegen.isa import ISAS, can_run

    isa = ISAS.get(target.arch)
    if isa is not None and not can_run(isa):
        raise ToolError(place, f"was compiled for {isa.name}, which this CPU is not", "compile it here")


_opened = itertools.count(1)


def _never_before(file: int) -> str:
    """A path of a descriptor that the loader has not seen: an older library may still be there by its number.

    >>> _never_before(7) != _never_before(7)
    True
    """
    number = next(_opened)
    return "/proc/self/fd/" + "".join("./" if bit == "1" else "/" for bit in f"{number:b}") + str(file)


def _descriptor(model: TvmModel) -> int:
    try:
        held = model.held_library
        return os.open(model.library, os.O_RDONLY | os.O_CLOEXEC) if held is None else os.dup(held.fileno())
    except OSError as error:
        raise ArtifactError(str(model.library), f"can't be read: {error.strerror}") from error


def mapped(model: TvmModel) -> Array:
    """The weight file. Raises: ArtifactError if there is none."""
    if model.held_weights is None and model.weights is None:
        raise ArtifactError(model.place, "has no weight file", "compile the model again")
    # a private mapping: tvm_ffi takes no memory that is read-only, and nothing writes to it
    return np.memmap(model.held_weights or str(model.weights), np.uint8, "c")


def region(memory: Array, offset: int, length: int, dtype: str, shape: Sequence[int]) -> Array:
    """A weight in the mapped file."""
    return memory[offset : offset + length].view(numpy_dtype(dtype)).reshape(shape)


_pool = threading.local()
"""TVM's workers are those of the thread that calls; ``threads``: how many of them it uses."""


def _use_threads(ffi: Any, threads: int) -> None:
    """Set how many workers TVM's kernels use from now on that this thread calls."""
    if getattr(_pool, "threads", None) != threads:
        ffi.get_global_func("runtime.config_threadpool")(1, threads)
        _pool.threads = threads
