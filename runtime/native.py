"""Runs an entry of a native library: its functions called through ctypes, state updated in place."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..compiler.closing import Closing
from ..compiler.errors import ArtifactError, CompileError, InputError, InternalError, ToolError
from ..compiler.manifest import Entry
from ..compiler.options import Target
from ..compiler.program import DimRange, TensorSpec
from ..compiler.reference import Array, Arrays
from .conditions import cores
from .native_library import Library
from .tensors import address_of
from .validate import Form, checked, form_of

_OK, _BAD_ARGUMENT, _NO_MEMORY, _BAD_FILE, _BAD_CPU, _FULL = range(6)
"""Errors of model.h."""


@dataclass(frozen=True, slots=True)
class NativeModel:
    """One entry of a native library, and the weight file that it maps.

    ``held_library``, ``held_weights``: the same files opened before; used if given, whatever lies at the
    paths by now. ``state``: input → output of every tensor that lives between runs.
    """

    library: Path
    weights: Path
    signature: Entry
    entry: str = "main"
    state: Mapping[str, str] = field(default_factory=dict)
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    target: Target = field(default_factory=Target)
    held_library: BinaryIO | None = None
    held_weights: BinaryIO | None = None
    place: str = "model"

    def open(
        self, threads: int | None = None, taps: Sequence[str] = (), *, resting: bool = False
    ) -> NativeRunner:
        """A runner; the caller closes it. No inner values can be tapped. Raises: as NativeRunner."""
        return NativeRunner(self, threads)

    def code(self) -> bytes:
        """The library, whose numbers depend on every kernel and offset."""
        return self.library.read_bytes()

    def computed(self) -> list[str]:
        """None: what lies between the kernels has no name any more."""
        return []


class _Opened:
    """A ``miaotui_model`` that is freed when the last run has let go of it."""

    __slots__ = ("library", "pointer", "run")

    def __init__(self, model: NativeModel, threads: int) -> None:
        held = model.held_library
        self.pointer = None
        self.library = Library.of(model.library, None if held is None else held.fileno())
        path = str(model.weights)
        if model.held_weights is not None:
            path = f"/proc/self/fd/{model.held_weights.fileno()}"
        self.run = self.library.functions.miaotui_run
        self.pointer = self.library.functions.miaotui_open(path.encode(), threads)
        if self.pointer is None:
            fact = self.library.error().removeprefix(f"{path}: ")
            if "this CPU" in fact:
                raise ToolError(model.place, *fact.split("; ", 1))
            raise ArtifactError(str(model.weights), fact, "compile the model again")

    def __del__(self) -> None:
        library = getattr(self, "library", None)
        if library is not None:
            library.functions.miaotui_close(self.pointer)
            library.close()


@dataclass(frozen=True, slots=True)
class Binding:
    """What a run is given: sizes and addresses. ``kept``: the arrays that they point into."""

    sizes: Any
    tensors: Any
    kept: tuple[Array, ...]


class NativeRunner(Closing):
    """One entry over a mapped weight file. ``run`` may be called from several threads.

    ``threads``: workers; None takes the physical cores this process may use.
    Raises: ToolError if this CPU can't run the library, ArtifactError if its files are damaged.
    """

    def __init__(self, model: NativeModel, threads: int | None = None) -> None:
        self.inputs: Sequence[TensorSpec] = model.signature.inputs
        self.outputs: Sequence[TensorSpec] = model.signature.outputs
        self.threads = cores() if threads is None else threads
        self._state, self._dims, self._place = model.state, model.dims, model.place
        start = time.perf_counter()
        opened = _Opened(model, self.threads)
        self._opened: _Opened | None = opened
        self.load_seconds = time.perf_counter() - start
        self._entry: int = opened.library.functions.miaotui_entry(model.entry.encode())
        self._names = [spec.name for spec in self.inputs]
        kept = set(self._state.values())
        self._plain = [spec for spec in self.outputs if spec.name not in kept]
        self._symbols = list(
            dict.fromkeys(d for spec in self.inputs for d in spec.shape or () if isinstance(d, str))
        )
        self._agree(opened.library)
        self._accepted: Form | None = None

    def _agree(self, library: Library) -> None:
        """The library's own account of the entry is the signature's."""
        own = [tensor.name.decode() for tensor in library.tensors(self._entry)]
        expected = [*self._names, *(spec.name for spec in self._plain)]
        sizes = library.sizes(self._entry)
        if own != expected or len(sizes) != len(self._symbols):
            fact = f"the library takes {', '.join(own) or 'nothing'} and {', '.join(sizes)}"
            raise InternalError(
                f"{self._place}: {fact}, its signature {', '.join(expected)} and {', '.join(self._symbols)}"
            )

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Outputs by name; ``inputs`` are arrays or tensors by name.

        Raises: InputError listing every input that does not fit, CompileError if memory runs out.
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
        opened = self._open()
        given = {name: np.require(arrays[name], requirements=("C", "A")) for name in self._names}
        outputs = {}
        for name, output in self._state.items():
            given[name] = outputs[output] = given[name].copy()
        sizes = self._sizes(given)
        for place, spec in enumerate(self._plain, len(self._names)):
            shape = opened.library.shape(self._entry, place, len(spec.shape or ()), sizes)
            if shape is None:
                raise self._error(opened, _BAD_ARGUMENT)
            outputs[spec.name] = np.empty(shape, spec.dtype.numpy())
        self.run_bound(self._bound(sizes, given, outputs))
        return {spec.name: outputs[spec.name] for spec in self.outputs}

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Binding:
        """Every input and the wanted outputs bound to memory; state is the same array in both."""
        for name, output in self._state.items():
            if output in outputs and address_of(outputs[output]) != address_of(inputs[name]):
                raise InternalError(
                    f"{self._place}: state {name!r} is updated in place, {output!r} is not it"
                )
        return self._bound(self._sizes(inputs), inputs, outputs)

    def _bound(self, sizes: Any, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Binding:
        arrays = [*(inputs[name] for name in self._names), *(outputs.get(s.name) for s in self._plain)]
        places = [None if array is None else address_of(array) for array in arrays]
        if any(array is not None and not array.flags.c_contiguous for array in arrays):
            raise InternalError(f"{self._place}: bound memory has gaps")
        return Binding(
            sizes, (ctypes.c_void_p * len(places))(*places), tuple(a for a in arrays if a is not None)
        )

    def _sizes(self, inputs: Mapping[str, Array]) -> Any:
        found: dict[str, int] = {}
        for spec in self.inputs:
            for dim, size in zip(spec.shape or (), inputs[spec.name].shape, strict=True):
                if isinstance(dim, str):
                    found.setdefault(dim, size)
        return (ctypes.c_int64 * len(self._symbols))(*(found[symbol] for symbol in self._symbols))

    def run_bound(self, binding: Binding) -> None:
        """Run over the memory of ``binding``. Raises: InputError for ids or lengths that don't fit."""
        opened = self._open()
        error = opened.run(opened.pointer, self._entry, binding.sizes, binding.tensors)
        if error:
            raise self._error(opened, error)

    def _open(self) -> _Opened:
        """Held by whoever uses it, so that a close from another thread waits for them."""
        opened = self._opened
        if opened is None:
            raise CompileError(self._place, "was closed", "open it again")
        return opened

    def _error(self, opened: _Opened, code: int) -> CompileError:
        fact = opened.library.error()
        if code == _NO_MEMORY:
            return CompileError(self._place, f"out of memory: {fact}", "give smaller inputs")
        return InputError(self._place, fact)

    def close(self) -> None:
        """Free the model once no run uses it."""
        self._opened = None
