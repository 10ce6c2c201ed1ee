"""State that lies in the ranks: driven by handles, made again from the tokens where a replica was lost."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...compiler.errors import InternalError, WorkerError
from ...compiler.program import Decoding
from ...compiler.reference import Array, Arrays
from .pool import Job, Pool
from .share import is_in_place
from .splitting import cut, joined, spans
from .work import Command, Replica, Use

_CHUNK = 512
"""Tokens that are replayed at once."""


@dataclass(slots=True)
class _Row:
    """A sequence: where its state lies, and what it takes to make that state again.

    ``tokens``: what has been written, by position, ``length`` of them. ``side``: of its past. ``constants``:
    inputs beside tokens, [1, ...] each.
    """

    member: int
    place: int
    tokens: Array
    length: int = 0
    side: int = 0
    constants: Arrays = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StateHandle:
    """Stands for rows of a state tensor where memory would be bound: nothing of it is in this process."""

    state: RemoteState
    side: int
    start: int
    stop: int

    def __getitem__(self, rows: slice) -> StateHandle:
        start, stop, _ = rows.indices(self.stop - self.start)
        return replace(self, start=self.start + start, stop=self.start + stop)


class RemoteState:
    """What StateBuffers is to a runner in this process: rows, capacity, sides, by handles.

    Rows are dealt out to the replicas when it is made, and stay. Nothing is sent to a replica before it runs
    something: a new one gets what is known to have been written, from the tokens.
    """

    def __init__(self, pool: Pool, decoding: Decoding, rows: int, capacity: int) -> None:
        self._pool, self._roles = pool, decoding
        self._wiring = pool.plan.entries[decoding.entry]
        self.rows, self.capacity, self.side = rows, capacity, 0
        self._count = 1 if is_in_place(pool.plan, decoding.entry) else 2
        self._number = pool.new_session()
        self._known: dict[int, int] = {}
        shares = spans(rows, len(pool.members))
        self._rows = [
            _Row(member, place, np.zeros(capacity, np.int64))
            for member, (start, stop) in enumerate(shares)
            for place in range(stop - start)
        ]
        weakref.finalize(self, pool.dropped.append, (decoding.entry, self._number))

    @property
    def sides(self) -> list[list[StateHandle]]:
        """A handle for each tensor on each side."""
        return [
            [StateHandle(self, side, 0, self.rows) for _ in self._roles.state] for side in range(self._count)
        ]

    def flip(self) -> None:
        """After a run: what was the present is the past."""
        self.side = (self.side + 1) % self._count

    def grow(self, capacity: int) -> None:
        """Room for ``capacity`` tokens a row; what is held stays."""
        self.capacity = capacity
        for row in self._rows:
            tokens = np.zeros(capacity, np.int64)
            tokens[: len(row.tokens)] = row.tokens
            row.tokens, row.side = tokens, 0
        self._tell(Command("grow", self._roles.entry, self._number, capacity=capacity, side=self.side))
        self.side = 0

    def keep(self, rows: Sequence[int]) -> None:
        """Only ``rows`` from now on, in that order, which must be ascending."""
        if list(rows) != sorted(set(rows)):
            raise InternalError(f"rows {list(rows)} are not ascending")
        left = [self._rows[row] for row in rows]
        for member in sorted({row.member for row in self._rows}):
            kept = tuple(row.place for row in left if row.member == member)
            command = Command("keep", self._roles.entry, self._number, kept=kept, side=self.side)
            self._tell(command, member)
            for place, row in enumerate(row for row in left if row.member == member):
                row.place, row.side = place, 0
        self._rows, self.rows, self.side = left, len(left), 0

    def settle(self, row: int, side: int) -> None:
        """Bring what ``row`` wrote by itself on ``side`` to the side that all rows are on."""
        if side == self.side:
            return
        held = self._rows[row]
        entry, number = self._roles.entry, self._number
        self._tell(Command("settle", entry, number, side=self.side, row=held.place, other=side), held.member)
        held.side = self.side

    def run(self, feeds: Arrays, side: int, start: int, stop: int) -> Arrays:
        """Continue rows ``start`` to ``stop``, whose past is on ``side``; outputs of the entry but its state.

        Raises: WorkerError if a worker was lost or hung in every attempt, whatever a rank raised.
        """
        rows = self._rows[start:stop]
        jobs: list[Job] = []
        for member in sorted({row.member for row in rows}):
            own = [at for at, row in enumerate(rows) if row.member == member]
            micro = self._pool.micro_batches if len(own) > 1 else 1
            for first, last in spans(len(own), micro):
                if last > first:
                    jobs.append(self._job(member, rows, feeds, side, own[first], own[last - 1] + 1))
        return joined(self._wiring, feeds, self._pool.do(self._roles.entry, jobs))

    def _job(self, member: int, rows: Sequence[_Row], feeds: Arrays, side: int, start: int, stop: int) -> Job:
        own = rows[start:stop]
        given = cut(self._wiring, feeds, start, stop)
        tokens, lengths = given[self._roles.tokens], given[self._roles.lengths]
        for at, row in enumerate(own):
            # what a row is cut back to is all that has to be there, and on this side
            row.length = min(row.length, int(lengths[at]))
            row.side = side
            row.constants = self._constants(given, at)

        def done() -> None:
            for at, row in enumerate(own):
                end = int(lengths[at]) + tokens.shape[1]
                row.tokens[lengths[at] : end] = tokens[at]
                row.length, row.side = end, (side + 1) % self._count

        use = Use(self._number, side, own[0].place, own[-1].place + 1)
        return Job(member, given, use, lambda r, g: self._prepare(member, r, g), done)

    def _constants(self, given: Arrays, at: int) -> Arrays:
        roles = self._roles
        own = (roles.tokens, roles.lengths, roles.select)
        return {
            feed.spec.name: cut_row(given[feed.spec.name], feed.batch, at)
            for feed in self._wiring.feeds
            if feed.spec.name not in own
        }

    def _prepare(self, member: int, replica: Replica, generation: int) -> None:
        """Make this session's state on a replica that has none of it. Raises: WorkerError."""
        if self._known.get(member) == generation:
            return
        pool, entry = self._pool, self._roles.entry
        rows = [row for row in self._rows if row.member == member]
        new = Command("new", entry, self._number, rows=len(rows), capacity=self.capacity)
        replica.command(new, pool.deadline())
        for row in rows:
            starts = range(0, row.length, _CHUNK)
            side = (row.side - len(starts)) % self._count
            for start in starts:
                chunk = row.tokens[None, start : min(start + _CHUNK, row.length)]
                feeds = {
                    **row.constants,
                    self._roles.tokens: chunk,
                    self._roles.lengths: np.full(1, start, np.int64),
                    self._roles.select: np.zeros((1, 0), np.int64),
                }
                use = Use(self._number, side, row.place, row.place + 1)
                _run(replica, entry, feeds, use, pool.deadline())
                side = (side + 1) % self._count
        self._known[member] = generation

    def _tell(self, command: Command, member: int | None = None) -> None:
        """Have replicas that hold some of this session do something; those that were lost learn it later."""
        for number, generation in list(self._known.items()):
            if member is not None and member != number:
                continue
            try:
                replica, current = self._pool.members[number].current()
                if current == generation:
                    replica.command(command, self._pool.deadline())
            except WorkerError as error:
                self._pool.members[number].renew(generation, error)


class HeldState(np.ndarray):
    """State given back by a run with arrays: its shape, and whose it is; it has no contents of its own."""

    state: RemoteState | None = None

    @classmethod
    def of(cls, state: RemoteState, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HeldState:
        """The state of all rows of ``state``."""
        held = np.broadcast_to(np.zeros((), dtype), shape).view(cls)
        held.state = state
        return held


def cut_row(array: Array, axis: int | None, at: int) -> Array:
    """Row ``at`` along ``axis``, kept as an axis of one; all of it where there is no such axis."""
    return array if axis is None else array[(slice(None),) * axis + (slice(at, at + 1),)]


def _run(replica: Replica, entry: str, feeds: Mapping[str, Array], use: Use, deadline: float) -> None:
    while (number := replica.start(entry, dict(feeds), use)) is None:
        replica.wait_for_room(deadline)
    replica.result(number, deadline)
