"""Runs the segments of an entry one after the other, each by its backend; arrays are handed over in place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ..compiler.closing import Closing
from ..compiler.errors import ArtifactError, CompileError, Problem
from ..compiler.manifest import Entry
from ..compiler.options import Target
from ..compiler.program import DimRange, TensorSpec
from ..compiler.reference import Array, Arrays
from .base import Model, Runner
from .conditions import cores
from .validate import Form, checked, form_of


@dataclass(frozen=True, slots=True)
class ChainModel:
    """What runners of the segments are opened from, in order, and the signature of the whole."""

    models: tuple[Model, ...]
    signature: Entry
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    target: Target = field(default_factory=Target)
    place: str = "model"

    def open(
        self, threads: int | None = None, taps: Sequence[str] = (), *, resting: bool = False
    ) -> ChainRunner:
        """A runner; the caller closes it. ``taps``: of those segments that can. Raises: as ChainRunner."""
        return ChainRunner(self, threads, taps)

    def code(self) -> bytes:
        """Of all segments."""
        return b"".join(model.code() for model in self.models)

    def computed(self) -> list[str]:
        """Names of the values that segments can give."""
        return [name for model in self.models for name in model.computed()]


@dataclass(frozen=True, slots=True)
class Binding:
    """Arrays that are read and written."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class ChainRunner(Closing):
    """Runners of all segments. What a segment gives, the next reads in the same memory.

    Worker threads of one segment rest when it ends, so that they do not take the cores from the next one's.
    ``threads``: of each segment; None takes the physical cores this process may use.
    Raises: ArtifactError if segments do not fit each other; else as the segments' runners.
    """

    def __init__(self, model: ChainModel, threads: int | None = None, taps: Sequence[str] = ()) -> None:
        self.inputs: Sequence[TensorSpec] = model.signature.inputs
        self.outputs: Sequence[TensorSpec] = model.signature.outputs
        self.threads = cores() if threads is None else threads
        self._dims, self._place = model.dims, model.place
        if problems := list(_wiring_problems(model)):
            raise ArtifactError.of(problems)
        start = time.perf_counter()
        self._opened = ExitStack()
        self._steps: list[Step] = []
        try:
            runners = [
                self._opened.enter_context(part.open(self.threads, taps, resting=True))
                for part in model.models
            ]
        except BaseException:
            self._opened.close()
            raise
        self._tapped = {name for name in taps if name in model.computed()}
        kept = {spec.name for spec in self.outputs} | self._tapped
        self._steps = _steps(runners, kept)
        self.load_seconds = time.perf_counter() - start
        self._accepted: Form | None = None

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
        """``run`` without the checks, for inputs that ``check`` returned."""
        if not self._steps:
            raise CompileError(self._place, "was closed", "open it again")
        known = dict(arrays)
        for step in self._steps:
            known.update(step.runner.run_arrays({name: known[name] for name in step.reads}))
            for name in step.last_read:
                del known[name]
        names = [spec.name for spec in self.outputs]
        return {name: known[name] for name in (*names, *sorted(self._tapped.difference(names)))}

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Binding:
        """Every input and the wanted outputs bound to memory; outputs are copied there."""
        return Binding(dict(inputs), dict(outputs))

    def run_bound(self, binding: Binding) -> None:
        """Run over the memory of ``binding``. Raises: CompileError if a kernel fails."""
        found = self.run_arrays(dict(binding.inputs))
        for name, array in binding.outputs.items():
            array[...] = found[name]

    def close(self) -> None:
        """Free all sessions."""
        self._steps = []
        self._opened.close()


@dataclass(frozen=True, slots=True)
class Step:
    """A runner, names of what it reads, and of what none reads after it."""

    runner: Runner
    reads: tuple[str, ...]
    last_read: tuple[str, ...]


def _steps(runners: Sequence[Runner], kept: set[str]) -> list[Step]:
    """``kept``: names of what is needed at the end."""
    steps: list[Step] = []
    later = set(kept)
    for runner in reversed(runners):
        reads = tuple(spec.name for spec in runner.inputs)
        held = {*reads, *(spec.name for spec in runner.outputs)}
        steps.append(Step(runner, reads, tuple(sorted(held - later))))
        later |= set(reads)
    return steps[::-1]


def _wiring_problems(model: ChainModel) -> Iterator[Problem]:
    known = {spec.name: spec for spec in model.signature.inputs}
    for number, part in enumerate(model.models):
        place = f"{model.place}: segment {number}"
        for spec in part.signature.inputs:
            given = known.get(spec.name)
            if given is None:
                yield Problem(place, f"reads {spec.name!r}, which nothing before it gives", AGAIN)
            elif given.dtype != spec.dtype or _differ(given, spec):
                yield Problem(place, f"reads {spec}, and gets {given}", AGAIN)
        known |= {spec.name: spec for spec in part.signature.outputs}
    for spec in model.signature.outputs:
        if spec.name not in known:
            yield Problem(model.place, f"output {spec.name!r} is given by no segment", AGAIN)


AGAIN = "compile the model again"


def _differ(given: TensorSpec, wanted: TensorSpec) -> bool:
    if given.shape is None or wanted.shape is None:
        return False
    if len(given.shape) != len(wanted.shape):
        return True
    pairs = zip(given.shape, wanted.shape, strict=True)
    return any(isinstance(g, int) and isinstance(w, int) and g != w for g, w in pairs)
