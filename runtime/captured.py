"""Runs over static buffers of a device, captured as a graph for each choice of sizes that comes again."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx_ir as ir

from ..compiler.errors import CompileError, DeviceError
from ..compiler.program import TensorSpec
from .device import to_torch, view
from .device_memory import Buffer, Memory

T = TypeVar("T")
Sizes = tuple[tuple[str, tuple[int, ...]], ...]

GRAPHS = 64
"""Choices of sizes with a graph; others run as they are. A graph is never freed before its session."""


@dataclass(frozen=True, slots=True)
class Static:
    """Buffers of one choice of sizes, bound; ``graph``: its number."""

    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]
    binding: Any
    graph: int


class Captured:
    """The captured runs of a session without state, one at a time.

    Sizes that come for the first time are run plainly, by the caller, who holds ``lock`` (nothing else may
    run while a run is captured) and then tells what came out (``learn``). The next run of these sizes is
    captured, later ones are replayed. A session that refuses to be captured says so once, and runs plainly
    from then on.
    """

    def __init__(self, memory: Memory, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._memory = memory
        self._dtypes = {spec.name: spec.dtype for spec in (*inputs, *outputs)}
        self._known: dict[Sizes, Sizes] = {}
        self._static: dict[Sizes, Static] = {}
        self.lock = threading.Lock()
        self.refusal = ""

    def run(
        self, given: Mapping[str, Any], put: Callable[[Buffer, Any], None], get: Callable[[Buffer], T]
    ) -> dict[str, T] | None:
        """Outputs as ``get`` takes them from their buffers, inputs as ``put`` brings them there.

        None where it has to be run plainly. Raises: DeviceError if the device fails.
        """
        sizes = _sizes(given.items())
        if self.refusal or sizes not in self._known:
            return None
        with self.lock:
            try:
                static = self._static.get(sizes) or self._made(sizes)
                if static is None:
                    return None
                for name, buffer in static.inputs.items():
                    put(buffer, given[name])
                self._memory.run(static.binding, static.graph)
            except DeviceError:
                raise
            except CompileError as error:
                self.refusal = error.problems[0].fact
                return None
            return {name: get(buffer) for name, buffer in static.outputs.items()}

    def learn(self, given: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """A plain run has made ``outputs`` of ``given``."""
        before, after = _sizes(given.items()), _sizes(outputs.items())
        if all(0 not in shape for _, shape in (*before, *after)):
            self._known[before] = after

    def _made(self, sizes: Sizes) -> Static | None:
        if len(self._static) == GRAPHS:
            return None
        inputs, outputs = (
            {name: self._memory.empty(shape, self._dtypes[name]) for name, shape in each}
            for each in (sizes, self._known[sizes])
        )
        graph = 1 + len(self._static)
        static = self._static[sizes] = Static(inputs, outputs, self._memory.bind(inputs, outputs), graph)
        return static


def foretold(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> bool:
    """Whether buffers can be made in advance: sizes of inputs say those of outputs, and all have axes."""
    inputs, outputs = list(inputs), list(outputs)
    given = {dim for spec in inputs for dim in spec.shape or () if isinstance(dim, str)}
    known = all(isinstance(dim, int) or dim in given for spec in outputs for dim in spec.shape or ())
    return known and all(spec.shape and spec.dtype != ir.DataType.STRING for spec in (*inputs, *outputs))


def run_tensors(captured: Captured, inputs: Mapping[str, Any], device: str) -> dict[str, Any] | None:
    """``Captured.run`` on tensors where they lie, by copies on the device; needs torch loaded, else None."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return None

    def waited() -> None:
        if device == "cuda":
            torch.cuda.synchronize()  # ONNX Runtime runs on a stream of its own

    left = len(inputs)

    def put(buffer: Buffer, value: Any) -> None:
        nonlocal left
        view(buffer.owner, torch).copy_(torch.as_tensor(value))
        left -= 1
        if not left:
            waited()

    return captured.run(inputs, put, lambda buffer: to_torch(buffer.owner, torch).clone())


def _sizes(named: Iterable[tuple[str, Any]]) -> Sizes:
    return tuple(sorted((name, tuple(value.shape)) for name, value in named))
