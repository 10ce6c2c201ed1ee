"""Runs an entry of a partitioned variant like any other; entries of a variant share one pool."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...compiler.closing import Closing
from ...compiler.errors import CompileError, InputError
from ...compiler.manifest import Entry
from ...compiler.options import Target
from ...compiler.parallel.check_plan import read_plan
from ...compiler.parallel.plan import PLAN, Plan
from ...compiler.program import Decoding, DimRange, TensorSpec
from ...compiler.reference import Arrays
from ..conditions import cores
from ..validate import Form, checked, form_of
from .options import ParallelOptions
from .pool import MakeReplica, Pool
from .sessions import HeldState, RemoteState, StateHandle
from .version import own_version


@dataclass(frozen=True, slots=True)
class ParallelModel:
    """An entry of a partitioned variant. ``folder``: where its plan.json lies."""

    folder: Path
    signature: Entry
    entry: str = "main"
    decoding: Decoding | None = None
    dims: Mapping[str, DimRange] = field(default_factory=dict)
    target: Target = field(default_factory=Target)
    options: ParallelOptions = field(default_factory=ParallelOptions)
    place: str = "model"

    def open(
        self, threads: int | None = None, taps: Sequence[str] = (), *, resting: bool = False
    ) -> ParallelRunner:
        """A runner; the caller closes it. No inner values can be tapped. Raises: as ParallelRunner."""
        return ParallelRunner(self, threads)

    def code(self) -> bytes:
        """The plan, which has the hashes of all parts."""
        return (self.folder / PLAN).read_bytes()

    def computed(self) -> list[str]:
        """None: what lies within parts stays in its rank."""
        return []


@dataclass(frozen=True, slots=True)
class Binding:
    """Arrays that are read and written, and the rows whose state a run continues."""

    feeds: Arrays
    outputs: Arrays
    state: StateHandle | None


class ParallelRunner(Closing):
    """One entry of a partitioned program over its pool. ``run`` may be called from several threads.

    ``threads``: of all ranks together; None takes the physical cores this process may use.
    Raises: ArtifactError if plan and files don't fit, or were written by another version; WorkerError if
    workers do not start; else as the parts' runners.
    """

    def __init__(self, model: ParallelModel, threads: int | None = None) -> None:
        self.inputs: Sequence[TensorSpec] = model.signature.inputs
        self.outputs: Sequence[TensorSpec] = model.signature.outputs
        self.threads = cores() if threads is None else threads
        self._model = model
        self._accepted: Form | None = None
        decoding = model.decoding
        self._decoding = decoding if decoding is not None and decoding.entry == model.entry else None
        self._held = {} if self._decoding is None else {t.input: t.output for t in self._decoding.state}
        self._pool: Pool | None = _borrow(model, self.threads)
        self.load_seconds = self._pool.load_seconds
        try:
            if model.entry not in self._pool.plan.entries:
                fix = f"it has {', '.join(self._pool.plan.entries)}"
                raise InputError(model.place, f"its plan has no entry {model.entry!r}", fix)
            self._pool.load(model.entry)
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Outputs by name; ``inputs`` are arrays or tensors by name.

        Raises: InputError listing every input that does not fit, WorkerError if a worker was lost or hung in
        every attempt, CompileError if a kernel fails.
        """
        return self.run_arrays(self.check(inputs))

    def check(self, inputs: Mapping[str, Any]) -> Arrays:
        """``inputs`` as arrays that fit the signature. Raises: InputError listing every one that does not."""
        form = form_of(inputs)
        if form is not None and form == self._accepted:
            return dict(inputs)
        arrays = checked(inputs, self.inputs, self._model.dims)
        arrays |= {name: inputs[name] for name in self._held if isinstance(inputs[name], HeldState)}
        self._accepted = form if all(arrays[name] is inputs[name] for name in arrays) else None
        return arrays

    def run_arrays(self, arrays: Arrays) -> Arrays:
        """``run`` without the checks, for inputs that ``check`` returned.

        State stays in the ranks: what is given back of it has a shape but no contents, and can be given to
        the next run. Raises: InputError if state is given that no run gave back, for rows that hold tokens.
        """
        pool = self._open()
        if self._decoding is None:
            found = pool.run(self._model.entry, arrays)
            return {spec.name: found[spec.name] for spec in self.outputs}
        state = self._state_of(arrays, self._decoding)
        feeds = {name: array for name, array in arrays.items() if name not in self._held}
        found = state.run(feeds, state.side, 0, state.rows)
        state.flip()
        # ranks write the next run's outputs over these
        outputs = {name: array.copy() for name, array in found.items()}
        for source, target in self._held.items():
            outputs[target] = HeldState.of(state, arrays[source].shape, arrays[source].dtype)
        return {spec.name: outputs[spec.name] for spec in self.outputs}

    def keep_state(self, decoding: Decoding, rows: int, capacity: int) -> RemoteState:
        """State in the ranks, empty: its handles are bound like memory."""
        return RemoteState(self._open(), decoding, rows, capacity)

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Binding:
        """Every input and the wanted outputs bound to memory, state to handles."""
        handle = next((value for value in inputs.values() if isinstance(value, StateHandle)), None)
        return Binding(
            {name: value for name, value in inputs.items() if not isinstance(value, StateHandle)},
            {name: value for name, value in outputs.items() if not isinstance(value, StateHandle)},
            handle,
        )

    def run_bound(self, binding: Binding) -> None:
        """Run over the memory of ``binding``; outputs are copied there. Raises: as ``run``."""
        handle = binding.state
        if handle is None:
            found = self.run_arrays(binding.feeds)
        else:
            self._open()
            found = handle.state.run(binding.feeds, handle.side, handle.start, handle.stop)
        for name, array in binding.outputs.items():
            array[...] = found[name]

    def _state_of(self, arrays: Arrays, decoding: Decoding) -> RemoteState:
        first = arrays[decoding.state[0].input]
        if isinstance(first, HeldState) and first.state is not None:
            return first.state
        if arrays[decoding.lengths].any():
            fact = "holds tokens, but this program keeps its state in its ranks"
            raise InputError(f"input {decoding.state[0].input!r}", fact, "give what the last run gave back")
        return RemoteState(self._open(), decoding, first.shape[0], first.shape[2])

    def close(self) -> None:
        """Leave the pool; the last one ends its workers."""
        pool, self._pool = self._pool, None
        if pool is not None:
            _give_back(pool)

    def _open(self) -> Pool:
        pool = self._pool
        if pool is None:
            raise CompileError(self._model.place, "was closed", "open it again")
        return pool


_POOLS: dict[Any, tuple[Pool, int]] = {}
_LOCK = threading.Lock()


def _borrow(model: ParallelModel, threads: int) -> Pool:
    """The pool of a variant, and how many have it: the first one to ask starts its workers."""
    plan = read_plan(model.folder, own_version())
    key = (model.folder, plan.dumps(), model.options, model.target, threads)
    with _LOCK:
        if key not in _POOLS:
            _POOLS[key] = _pool(model, plan, threads), 0
        pool, users = _POOLS[key]
        _POOLS[key] = pool, users + 1
        return pool


def _give_back(pool: Pool) -> None:
    with _LOCK:
        [key] = [key for key, (known, _) in _POOLS.items() if known is pool]
        _, users = _POOLS[key]
        if users > 1:
            _POOLS[key] = pool, users - 1
            return
        del _POOLS[key]
    pool.close()


def _pool(model: ParallelModel, plan: Plan, threads: int) -> Pool:
    """Its replicas started, by the executor asked for."""
    each = max(1, threads // plan.mesh.size)
    folder, options, target = model.folder.resolve(), model.options, model.target
    if options.executor == "threads":
        from .threads import ThreadReplica

        make: MakeReplica = partial(ThreadReplica, folder, plan, target=target, threads=each)
        return Pool(plan, options, make, model.place)
    if options.executor == "ray":
        from .ray_actors import RayReplica
        from .ray_cluster import connected, disconnect

        make = partial(RayReplica, folder, plan, options=options, target=target, threads=each)
        connected(options)
        return Pool(plan, options, make, model.place, disconnect)
    from .processes import ProcessReplica

    make = partial(ProcessReplica, folder, plan, options=options, target=target, threads=each)
    return Pool(plan, options, make, model.place)
