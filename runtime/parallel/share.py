"""A rank's share of a partitioned program: its parts opened, run in order, its state kept between runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...compiler.closing import Closing
from ...compiler.errors import ArtifactError, InternalError, UnsupportedError
from ...compiler.manifest import IN_PLACE
from ...compiler.options import Target
from ...compiler.parallel.plan import BACKENDS, Collective, EntryPlan, Part, Plan, Share
from ...compiler.program import Decoding, Dim, StateTensor
from ...compiler.reference import Array, Arrays
from ..base import Model, Runner
from ..generate.buffers import StateBuffers, aligned
from ..onnxruntime import OnnxRuntimeModel
from .meeting import Group
from .work import Command, Use

_BINDINGS = 32
"""Forms of inputs for which a session keeps bindings: prompts differ, steps are all alike."""


@dataclass(frozen=True, slots=True)
class _Step:
    """A part or a collective. ``past``, ``present``: state read and written; ``dead``: read last here."""

    step: Part | Collective
    runner: Runner | None
    reads: tuple[str, ...]
    dead: tuple[str, ...]
    past: tuple[str, ...] = ()
    present: tuple[str, ...] = ()


@dataclass(slots=True)
class _Session:
    """State of some rows. ``places``: of its tensors among the buffers."""

    buffers: StateBuffers
    places: Mapping[str, int]
    bindings: dict[Any, tuple[Arrays, Arrays, Any]] = field(default_factory=dict)

    def state(self, step: _Step, use: Use) -> tuple[Arrays, Arrays]:
        """Where a part reads its state, and where it writes it."""
        sides, rows = self.buffers.sides, slice(use.start, use.stop)
        places = [self.places[name] for name in step.past]
        past = {name: sides[use.side][at][rows] for name, at in zip(step.past, places, strict=True)}
        written = {name: sides[use.side - 1][at][rows] for name, at in zip(step.present, places, strict=True)}
        return past, written


class ShareRunner(Closing):
    """The parts of the share at ``stage`` and ``shard`` of the plan in ``folder``; entries open when used.

    ``threads``: of each part's runner. Raises: as the parts' runners.
    """

    def __init__(
        self, folder: Path, plan: Plan, stage: int, shard: int, *, target: Target, threads: int = 1
    ) -> None:
        self._folder, self._plan, self._share = folder, plan, plan.share(stage, shard)
        self._target, self._threads = target, threads
        self._opened = ExitStack()
        self._steps: dict[str, list[_Step]] = {}
        self._sessions: dict[int, _Session] = {}
        self.place = f"stage {stage} shard {shard}"
        self.reads = {entry: _reads(wiring, stage) for entry, wiring in plan.entries.items()}
        self.meetings = {
            entry: sum(isinstance(step, Collective) for step in steps)
            for entry, steps in self._share.steps.items()
        }
        self.later = {entry: _later(wiring, stage, shard, plan) for entry, wiring in plan.entries.items()}
        self.gives = {entry: _gives(wiring, stage, shard) for entry, wiring in plan.entries.items()}

    def load(self, entry: str) -> None:
        """Open the parts of ``entry``. Raises: ArtifactError if a file can't be read."""
        if entry not in self._steps:
            self._steps[entry] = self._open(entry)

    def run(self, entry: str, values: Mapping[str, Array], group: Group, use: Use | None = None) -> Arrays:
        """What others need of a run: wires and outputs by name. Raises: whatever a part raises."""
        self.load(entry)
        known = {name: values[name] for name in self.reads[entry]}
        session = None if use is None else self._session(use.session)
        for number, step in enumerate(self._steps[entry]):
            if isinstance(step.step, Collective):
                known[step.step.output] = group.meet(step.step, known[step.step.input])
            elif step.past and session is not None and use is not None:
                known |= self._run_bound(number, step, known, session, use)
            elif step.runner is not None:
                known |= step.runner.run_arrays({name: known[name] for name in step.reads})
            for name in step.dead:
                known.pop(name, None)
        return {name: known[name] for name in self.gives[entry]}

    def do(self, command: Command) -> None:
        """Carry out a command about state. Raises: InternalError if its session is not known."""
        number = command.session
        if command.kind == "load":
            self.load(command.entry)
        elif command.kind == "drop":
            self._sessions.pop(number, None)
        elif command.kind == "new":
            self._sessions[number] = self._new_session(command)
        else:
            session = self._session(number)
            session.bindings.clear()
            session.buffers.side = command.side
            if command.kind == "grow":
                session.buffers.grow(command.capacity)
            elif command.kind == "keep":
                session.buffers.keep(command.kept)
            else:
                session.buffers.settle(command.row, command.other)

    def _session(self, number: int) -> _Session:
        found = self._sessions.get(number)
        if found is None:
            raise InternalError(f"{self.place}: no session {number}")
        return found

    def _new_session(self, command: Command) -> _Session:
        kept = self._share.state.get(command.entry, ())
        decoding = Decoding(0, tuple(StateTensor(state.input, state.output) for state in kept))
        specs, in_place = [state.spec for state in kept], is_in_place(self._plan, command.entry)
        buffers = StateBuffers(
            decoding, specs, rows=command.rows, capacity=command.capacity, in_place=in_place
        )
        return _Session(buffers, {state.input: place for place, state in enumerate(kept)})

    def _run_bound(self, number: int, step: _Step, known: Arrays, session: _Session, use: Use) -> Arrays:
        """A part that reads and writes state, over the memory where it lies."""
        plain = {name: known[name] for name in step.reads}
        form = tuple((array.dtype, array.shape) for array in plain.values())
        key = (number, use.side, use.start, use.stop, form)
        bound = session.bindings.get(key)
        if bound is None:
            if len(session.bindings) >= _BINDINGS * len(self._steps):
                session.bindings.clear()
            bound = self._bind(step, plain, session, use)
            if bound is None:
                return self._run_copied(step, plain, session, use)
            session.bindings[key] = bound
        inputs, outputs, binding = bound
        for name, array in inputs.items():
            array[...] = plain[name]
        assert step.runner is not None
        step.runner.run_bound(binding)
        return outputs

    def _bind(
        self, step: _Step, plain: Arrays, session: _Session, use: Use
    ) -> tuple[Arrays, Arrays, Any] | None:
        """Memory for a form of inputs; None if an output's size is only known behind the run."""
        assert step.runner is not None
        specs = {spec.name: spec for spec in step.runner.inputs}
        past, written = session.state(step, use)
        sizes: dict[str, int] = {}
        for name, array in (plain | past).items():
            for dim, size in zip(specs[name].shape or (), array.shape, strict=True):
                if isinstance(dim, str):
                    sizes.setdefault(dim, size)
        outputs = {}
        for spec in step.runner.outputs:
            if spec.name in written:
                continue
            shape = [_size(dim, sizes) for dim in spec.shape or ()]
            if spec.shape is None or None in shape:
                return None
            outputs[spec.name] = aligned(shape, spec)
        inputs = {name: aligned(array.shape, specs[name]) for name, array in plain.items()}
        return inputs, outputs, step.runner.bind(inputs | past, outputs | written)

    def _run_copied(self, step: _Step, plain: Arrays, session: _Session, use: Use) -> Arrays:
        """The same where memory for outputs can't be bound: new state is copied to where it lies."""
        assert step.runner is not None
        past, written = session.state(step, use)
        made = step.runner.run_arrays(plain | past)
        for name, memory in written.items():
            memory[...] = made.pop(name)
        return made

    def _open(self, entry: str) -> list[_Step]:
        share, past = self._share, {s.input: s.output for s in self._share.state.get(entry, ())}
        steps: list[_Step] = []
        later = set(self.gives[entry])
        for step in reversed(share.steps.get(entry, ())):
            if isinstance(step, Collective):
                steps.append(_Step(step, None, (step.input,), _dead((step.input, step.output), later)))
                later.add(step.input)
                continue
            held = tuple(s.name for s in step.signature.inputs if s.name in past)
            reads = tuple(s.name for s in step.signature.inputs if s.name not in past)
            dead = _dead((*reads, *(s.name for s in step.signature.outputs)), later)
            model = self._model(share, step, {name: past[name] for name in held})
            runner = self._opened.enter_context(model.open(self._threads, resting=True))
            steps.append(_Step(step, runner, reads, dead, held, tuple(past[name] for name in held)))
            later |= set(reads)
        return steps[::-1]

    def _model(self, share: Share, part: Part, state: Mapping[str, str]) -> Model:
        """What a part is opened from; ``state``: output of each of its inputs that live between runs."""
        place = f"{self.place}: {part.entry}"
        if part.backend not in BACKENDS:
            fact = f"was built by backend {part.backend!r}, which partitioned programs can't run"
            raise UnsupportedError(place, fact, f"compile with --backend {' or '.join(BACKENDS)}")
        if part.backend == "native":
            return self._native(share, part, state, place)
        try:
            data = (self._folder / part.file).read_bytes()
        except OSError as error:
            fact = f"can't be read: {error.strerror}"
            raise ArtifactError(str(self._folder / part.file), fact, "compile the model again") from error
        return OnnxRuntimeModel(
            data=data,
            signature=part.signature,
            settings=part.settings,
            target=self._target,
            weights=None if share.weights is None else self._folder / share.weights,
            place=place,
        )

    def _native(self, share: Share, part: Part, state: Mapping[str, str], place: str) -> Model:
        from ..native import NativeModel

        if share.weights is None:
            raise ArtifactError(place, "names no weight file", "compile the model again")
        return NativeModel(
            library=self._folder / part.file,
            weights=self._folder / share.weights,
            signature=part.signature,
            entry=part.entry,
            state=state,
            target=self._target,
            place=place,
        )

    def close(self) -> None:
        """Free sessions and state."""
        self._sessions.clear()
        self._steps.clear()
        self._opened.close()


def is_in_place(plan: Plan, entry: str) -> bool:
    """Whether every part that keeps state may read and write it in one buffer."""
    return all(
        step.settings.get(IN_PLACE) == "1"
        for share in plan.shares
        for step in share.steps.get(entry, ())
        if isinstance(step, Part)
        and {spec.name for spec in step.signature.inputs} & {s.input for s in share.state.get(entry, ())}
    )


def _reads(wiring: EntryPlan, stage: int) -> tuple[str, ...]:
    """What a stage is given."""
    feeds = [feed.spec.name for feed in wiring.feeds if stage in feed.stages]
    return (*feeds, *(wire.spec.name for wire in wiring.wires if stage in wire.targets))


def _later(wiring: EntryPlan, stage: int, shard: int, plan: Plan) -> frozenset[str]:
    """What is read behind a stage's shard: by other stages, and by the caller, whom shard 0 answers."""
    read = {name for behind in range(stage + 1, plan.mesh.pp) for name in _reads(wiring, behind)}
    fetches = {fetch.spec.name for fetch in wiring.fetches if fetch.stage >= 0 and shard == 0}
    return frozenset(read | fetches)


def _gives(wiring: EntryPlan, stage: int, shard: int) -> tuple[str, ...]:
    """What a stage's shard hands on; outputs are shard 0's."""
    wires = [wire.spec.name for wire in wiring.wires if wire.source == stage]
    fetches = [fetch.spec.name for fetch in wiring.fetches if fetch.stage == stage and shard == 0]
    return tuple(dict.fromkeys([*wires, *fetches]))


def _size(dim: Dim, sizes: Mapping[str, int]) -> int | None:
    """A dimension, which may be an expression of others; None if they do not tell it."""
    if not isinstance(dim, str) or dim in sizes:
        return sizes[dim] if isinstance(dim, str) else dim
    try:
        size = ir.SymbolicDim(dim).evaluate(sizes)
    except ValueError:  # a name that is no expression
        return None
    return size if isinstance(size, int) else None


def _dead(names: tuple[str, ...], later: set[str]) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(names) if name not in later)


__all__ = ["ShareRunner", "is_in_place"]
