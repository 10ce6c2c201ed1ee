"""Runs a built model under ONNX Runtime: one session, inputs checked, its exceptions in our words."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..compiler.closing import Closing
from ..compiler.errors import CompileError, ToolError, require
from ..compiler.manifest import Entry
from ..compiler.options import Target
from ..compiler.program import DimRange, TensorSpec
from ..compiler.reference import Array, Arrays
from .captured import Captured, foretold, run_tensors
from .conditions import cores
from .device import described, is_foreign, on_gpu, run_device, run_values
from .device_errors import device_failure
from .messages import translated
from .onnxruntime_memory import CAPTURE, REFUSED, OrtMemory
from .row_by_row import joined, rows_of
from .taps import computed, tapped, with_lengths_after
from .tensors import address_of
from .validate import Form, checked, form_of

_FOLDER = "session.model_external_initializers_file_folder_path"

RESTING = {"session.force_spinning_stop": "1"}
"""Settings of a session whose worker threads rest as soon as a run ends, so that it disturbs no other."""

_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


@dataclass(frozen=True, slots=True)
class OnnxRuntimeModel:
    """What a session is made from: a built model, its signature, and where its large tensors lie.

    ``stepping``: the input of an entry with state that says how many tokens it holds, if the session is to
    run over the device's own memory: it may capture CUDA graphs, and has one more output (``AFTER``), that
    input plus one. ``captures``: whether runs of an entry without state may be captured. ``row_by_row``: the
    input of tokens of an entry that takes several of one row only. ``weights``: the weight file's path;
    ``held``: the same file opened before, used if the path is another file by now.
    """

    data: bytes
    signature: Entry
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    target: Target = field(default_factory=Target)
    weights: Path | None = None
    held: BinaryIO | None = None
    place: str = "model"
    stepping: str | None = None
    captures: bool = False
    row_by_row: str | None = None

    def open(
        self, threads: int | None = None, taps: Sequence[str] = (), *, resting: bool = False
    ) -> OnnxRuntimeRunner:
        """A runner; the caller closes it. ``resting``: see ``RESTING``. Raises: as OnnxRuntimeRunner."""
        settings = {**self.settings, **(RESTING if resting else {})}
        return OnnxRuntimeRunner(replace(self, settings=settings), threads, taps)

    def code(self) -> bytes:
        """The model as ONNX."""
        return self.data

    def computed(self) -> list[str]:
        """Names of all values that the main graph computes, in execution order."""
        return computed(self.data)


class OnnxRuntimeRunner(Closing):
    """One session over a built model. ``run`` may be called from several threads.

    ``threads``: intra-op threads; None takes the physical cores this process may use. ``taps``: inner
    values, by name, to give as outputs too; those that do not exist are left out.
    Raises: ToolError if onnxruntime or the target's provider is missing, UnsupportedError for operators
    without a kernel, CompileError for whatever else ONNX Runtime refuses.
    """

    def __init__(self, model: OnnxRuntimeModel, threads: int | None = None, taps: Sequence[str] = ()) -> None:
        ort = require("onnxruntime", extra=_extra(model.target))
        self._ort = ort
        self.inputs: Sequence[TensorSpec] = model.signature.inputs
        self.outputs: Sequence[TensorSpec] = model.signature.outputs
        self.threads = cores() if threads is None else threads
        self._dims = model.dims
        self._place, self._row_by_row = model.place, model.row_by_row
        data = tapped(model.data, taps) if taps else model.data
        data = data if model.stepping is None else with_lengths_after(data, model.stepping)
        start = time.perf_counter()
        self.device = model.target.device
        self.refusal = ""
        self._session: Any = self._opened(model, data)
        self.load_seconds = time.perf_counter() - start
        self._names = [output.name for output in self._session.get_outputs()]
        self._tensors = {i.name for i in self._session.get_inputs() if i.type.startswith("tensor(")}
        self._has_foreign = any(map(is_foreign, [*self.inputs, *self.outputs]))
        plain = model.captures and not taps and not self._has_foreign
        self._captured: Captured | None = None
        if plain and foretold(self.inputs, self.outputs) and self.memory.captures:
            self._captured = Captured(self.memory, self.inputs, self.outputs)
        self._accepted: Form | None = None

    def _opened(self, model: OnnxRuntimeModel, data: bytes) -> Any:
        """The session; without CUDA graphs if it refuses them, ``refusal`` says why."""
        if (model.stepping is not None or model.captures) and self.device == "cuda":
            capturing = replace(model, settings={**model.settings, CAPTURE: "1"})
            try:
                return _session(self._ort, capturing, data, self.threads)
            except CompileError as error:
                if REFUSED not in str(error):
                    raise
                self.refusal = error.problems[0].fact
        return _session(self._ort, model, data, self.threads)

    @cached_property
    def memory(self) -> OrtMemory:
        """The memory of the session's device. Raises: CompileError if closed."""
        with self._translated() as session:
            provider = session.get_providers()[0]
            captures = session.get_provider_options().get(provider, {}).get("enable_cuda_graph") == "1"
            options = {"device_id": "0", "use_tf32": "0"} if provider == "CUDAExecutionProvider" else {}
            return OrtMemory(
                self._ort, session, self.device, (provider, options), self._place, captures=captures
            )

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Outputs by name; ``inputs`` are arrays or tensors by name.

        If the target is CUDA and a tensor is in GPU memory, none is copied and the outputs are tensors
        there too (see ``run_device``).
        Raises: InputError listing every input that does not fit, CompileError if a kernel fails.
        """
        if self.device == "cuda" and any(map(on_gpu, inputs.values())):
            return self.run_device(inputs)
        return self.run_arrays(self.check(inputs))

    def run_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """``run`` on dlpack tensors where they lie; outputs are torch tensors on the target's device.

        Without torch loaded they are ONNX Runtime values. Raises: as ``run``.
        """
        stand_ins = {n: v if isinstance(v, np.ndarray) else described(v) for n, v in inputs.items()}
        checked(stand_ins, self.inputs, self._dims)
        if self._row_by_row and (rows := rows_of(inputs, self.inputs, self._row_by_row)):
            return joined([self.run_device(row) for row in rows])
        if self._captured and (found := run_tensors(self._captured, inputs, self.device)) is not None:
            return found
        with self._alone(), self._translated() as session:
            made = run_device(self._ort, session, inputs, self.device)
        if self._captured:
            self._captured.learn(inputs, made)
        return made

    def check(self, inputs: Mapping[str, Any]) -> Arrays:
        """``inputs`` as arrays that fit the signature. Raises: InputError listing every one that does not."""
        # Cold, after a run, the full check takes 0.2 ms: arrays formed like the last accepted pass at once.
        form = form_of(inputs)
        if form is not None and form == self._accepted:
            return dict(inputs)
        arrays = self._checked(inputs)
        self._accepted = form if all(arrays[name] is inputs[name] for name in arrays) else None
        return arrays

    def _checked(self, inputs: Mapping[str, Any]) -> Arrays:
        others = {name: inputs[name] for name in inputs if name not in self._tensors and self._is_input(name)}
        tensors = {name: value for name, value in inputs.items() if name not in others}
        return checked(tensors, [s for s in self.inputs if s.name in self._tensors], self._dims) | others

    def run_arrays(self, arrays: Arrays) -> Arrays:
        """``run`` without the checks, for inputs that ``check`` returned: what timing measures."""
        if self._row_by_row and (rows := rows_of(arrays, self.inputs, self._row_by_row)):
            return joined([self.run_arrays(row) for row in rows])
        captured = self._captured
        if captured and (found := captured.run(arrays, self.memory.write, self.memory.read)) is not None:
            return found
        with self._alone(), self._translated() as session:
            if self._has_foreign:
                outputs = run_values(self._ort, session, arrays, self.inputs)
            else:
                outputs = session.run(None, arrays, self._uncaptured)
        made = dict(zip(self._names, outputs, strict=True))
        if captured:
            captured.learn(arrays, made)
        return made

    @cached_property
    def _uncaptured(self) -> Any:
        """Run options without which a session that may capture would, over memory that goes away."""
        return self.memory.options()

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Any:
        """Every input and the wanted outputs bound to memory. Raises: CompileError if closed."""
        dtypes = {spec.name: int(spec.dtype) for spec in (*self.inputs, *self.outputs)}
        with self._translated() as session:
            binding = session.io_binding()
            for name, array in inputs.items():
                binding.bind_input(name, "cpu", 0, dtypes[name], array.shape, address_of(array))
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, dtypes[name], array.shape, address_of(array))
            return binding

    def run_bound(self, binding: Any) -> None:
        """Run over the memory that ``binding`` names; outputs that are not bound are not returned.

        Raises: CompileError if a kernel fails.
        """
        session = self._session
        if session is None:
            raise self._closed()
        try:
            session.run_with_iobinding(binding)
        except Exception as error:
            raise translated(error, self._place, self.device) from error

    def _alone(self) -> AbstractContextManager[object]:
        """While a run of this session is captured, no other one may go on."""
        return nullcontext() if self._captured is None else self._captured.lock

    @contextmanager
    def _translated(self) -> Iterator[Any]:
        session = self._session
        if session is None:
            raise self._closed()
        try:
            yield session
        except Exception as error:
            raise translated(error, self._place, self.device) from error

    def close(self) -> None:
        """Free the session."""
        self._session = self._captured = None
        self.__dict__.pop("memory", None)

    def _closed(self) -> CompileError:
        return CompileError(self._place, "was closed", "open it again")

    def _is_input(self, name: str) -> bool:
        return any(spec.name == name for spec in self.inputs)


def _session(ort: Any, model: OnnxRuntimeModel, data: bytes, threads: int) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    for name, value in model.settings.items():
        if name == "graph_optimization_level":
            options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[value])
        elif name.startswith("session."):
            options.add_session_config_entry(name, value)
    providers = _providers(ort, model)
    held = _attach_weights(options, model)
    try:
        session = ort.InferenceSession(data, options, providers=providers)
    except Exception as error:
        raise translated(error, model.place, model.target.device) from error
    finally:
        del held
    if model.target.device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise not_started(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so")
    return session


def not_started(provider: Path) -> CompileError:
    """Why ONNX Runtime left its CUDA provider out, which it only logs: what loading ``provider`` says."""
    place = "CUDAExecutionProvider"
    try:
        ctypes.CDLL(str(provider.with_name("libonnxruntime_providers_shared.so")), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
    except OSError as error:
        found = device_failure(str(error), place)
        if found is not None:
            return found
    fix = "pip install 'onnxruntime-gpu[cuda,cudnn]', and check the driver with nvidia-smi"
    return ToolError(place, "could not start: a CUDA library, cuDNN or the driver is missing", fix)


def _attach_weights(options: Any, model: OnnxRuntimeModel) -> object:
    """Tell the session where the weight file lies; what must stay alive until the session is made."""
    if model.weights is None:
        return None
    if model.held is None or _is_same_file(model.weights, model.held):
        options.add_session_config_entry(_FOLDER, str(model.weights.parent.absolute()))
        return None
    # The folder was replaced since it was opened: the old file lives on in our handle; it costs a copy.
    buffer = np.memmap(model.held, mode="r")
    options.add_external_initializers_from_files_in_memory([model.weights.name], [buffer], [buffer.size])
    return buffer


def _is_same_file(path: Path, held: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(held.fileno()))
    except OSError:
        return False


def _providers(ort: Any, model: OnnxRuntimeModel) -> list[Any]:
    if model.target.device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        fix = "pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'onnxruntime-gpu[cuda,cudnn]'"
        raise ToolError("onnxruntime", "is installed without its CUDA provider", fix)
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    settings = {k.removeprefix("ep.cuda."): v for k, v in model.settings.items() if k.startswith("ep.cuda.")}
    return [("CUDAExecutionProvider", settings), "CPUExecutionProvider"]


def _extra(target: Target) -> str:
    return "cuda" if target.device == "cuda" else "cpu"
