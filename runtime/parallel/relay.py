"""A replica whose ranks hand runs on to each other: each shard's way goes from stage to stage, in order."""

from __future__ import annotations

import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from ...compiler.errors import CompileError, WorkerError
from ...compiler.parallel.mesh import Mesh
from ...compiler.parallel.plan import Plan
from ...compiler.reference import Arrays
from .meeting import Group
from .share import ShareRunner
from .work import IDLE, MEETING, RUNNING, Command, PeerFailedError, Status, Travel, Use

Answers: TypeAlias = "SimpleQueue[Travel | WorkerError]"

_BLAME = (RUNNING, IDLE, MEETING)
"""What ranks are at that are late, from who holds up others to who is held up."""


class Rank:
    """A share, its group and its status: takes runs one after the other."""

    def __init__(self, share: ShareRunner, group: Group, status: Status) -> None:
        self.share, self._group, self._status = share, group, status

    def handle(self, travel: Travel) -> None:
        """Do this rank's part of a run: ``values`` become what is read behind it, or ``error`` is set.

        A run that has failed before is passed on, so that every shard's way ends, and no other rank waits.
        """
        status, number = self._status, travel.number
        status.number, status.phase = number, RUNNING
        self._group.begin(number, self.share.meetings.get(travel.entry, 0) if travel.command is None else 0)
        if travel.error is None:
            try:
                if travel.command is not None:
                    self.share.do(travel.command)
                else:
                    values = self.read(travel, self.share.reads[travel.entry])
                    made = self.share.run(travel.entry, values, self._group, travel.use)
                    values = {**travel.values, **self.write(travel, made)}
                    later = self.share.later[travel.entry]
                    travel.values = {name: value for name, value in values.items() if name in later}
            except Exception as error:
                travel.error = error
        if travel.error is not None:
            self._group.abort(number)
        status.phase = IDLE

    def read(self, travel: Travel, names: Sequence[str]) -> Arrays:
        """Values as arrays."""
        return {name: travel.values[name] for name in names}

    def write(self, travel: Travel, made: Arrays) -> Mapping[str, Any]:
        """Arrays in the form in which the next ranks take them."""
        return made


class Relay(ABC):
    """The caller's side: starts runs, as many as there are slots, and collects what comes back.

    ``depth``: slots. Each run is known by a number; an answer that nobody waits for any more is dropped.
    """

    def __init__(self, plan: Plan, name: str, depth: int) -> None:
        mesh = Mesh(1, plan.mesh.pp, plan.mesh.tp)
        self._fetches = {
            entry: tuple(fetch.spec.name for fetch in wiring.fetches if fetch.stage >= 0)
            for entry, wiring in plan.entries.items()
        }
        self.broken: WorkerError | None = None
        self._mesh, self._name = mesh, name
        self._slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(depth):
            self._slots.put(slot)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[Answers, int, tuple[str, ...]]] = {}
        self._sending = threading.Lock()

    @abstractmethod
    def launch(self, travels: Sequence[Travel]) -> None:
        """Send each shard's way to its rank of stage 0. Called by one thread at a time."""

    @abstractmethod
    def statuses(self) -> Sequence[Status]:
        """Of all ranks, by stage, then shard."""

    @abstractmethod
    def stop(self) -> None:
        """End all ranks at once."""

    def give(self, slot: int, feeds: Arrays) -> Mapping[str, Any]:
        """``feeds`` in the form in which ranks take them."""
        return feeds

    def taken(self, values: Mapping[str, Any]) -> Arrays:
        """Values that came back as arrays of the caller's own."""
        return dict(values)

    def describe(self, rank: int) -> str:
        """A rank's name, by its number in the replica."""
        return f"stage {rank // self._mesh.tp} shard {rank % self._mesh.tp}"

    def at_once(self, entry: str, feeds: Arrays) -> Arrays | None:
        """Fetches of a run that is quicker done than handed over; None: it is to be started."""
        return None

    def start(self, entry: str, feeds: Arrays, use: Use | None = None) -> int | None:
        """Begin a run; its number, None while as many are under way as there is room for."""
        self._check()
        try:
            slot = self._slots.get_nowait()
        except Empty:
            return None
        return self._begin(slot, entry, feeds, use, None)

    def result(self, number: int, deadline: float) -> Arrays:
        """Fetches of a run, by name. Raises: WorkerError, or whatever a rank raised."""
        answers, slot, names = self._waiting[number]
        ways = []
        for _ in range(self._mesh.tp):
            try:
                answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                del self._waiting[number]
                raise self._hung(number) from None
            if isinstance(answer, WorkerError):
                self._waiting.pop(number, None)
                raise answer
            ways.append(answer)
        try:
            errors = [way.error for way in ways if way.error is not None]
            if errors:
                raise next((e for e in errors if not isinstance(e, PeerFailedError)), errors[0])
            values = next(way.values for way in ways if way.shard == 0)
            try:
                return self.taken({name: values[name] for name in names})
            except OSError:  # its memory is gone with the replica
                self._check()
                raise
        finally:
            del self._waiting[number]
            if slot >= 0:
                self._slots.put(slot)

    def command(self, command: Command, deadline: float) -> None:
        """Have all ranks carry out ``command``, in order with runs. Raises: as ``result``."""
        self._check()
        self.result(self._begin(-1, command.entry, {}, None, command), deadline)

    def wait_for_room(self, deadline: float) -> None:
        """Return once ``start`` may have room again. Raises: WorkerError at the deadline."""
        try:
            slot = self._slots.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            raise self.broken or self._hung(min(self._waiting, default=0)) from None
        self._slots.put(slot)
        self._check()

    def kill(self, reason: WorkerError) -> None:
        """End all ranks at once; runs under way fail with ``reason``."""
        with self._sending:
            first = self.broken is None
            if first:
                self.broken = reason
        if first:
            self.stop()
        for answers, _, _ in list(self._waiting.values()):
            answers.put(reason)
        self._slots.put(-1)  # wakes one that waits for room

    def close(self) -> None:
        """End all ranks."""
        self.kill(WorkerError(self._name, "was closed", "open it again"))

    def arrived(self, travel: Travel) -> None:
        """A shard's way has ended. May be called by any thread."""
        waiting = self._waiting.get(travel.number)
        if waiting is not None:
            waiting[0].put(travel)

    def failed(self, number: int, error: WorkerError) -> None:
        """A run will give nothing. May be called by any thread."""
        waiting = self._waiting.get(number)
        if waiting is not None:
            waiting[0].put(error)

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _begin(self, slot: int, entry: str, feeds: Arrays, use: Use | None, command: Command | None) -> int:
        try:
            values = self.give(slot, feeds) if command is None else {}
        except (OSError, CompileError):
            self._check()
            self._slots.put(slot)
            raise
        with self._sending:
            self._check()
            number = next(self._numbers)
            self._waiting[number] = SimpleQueue(), slot, () if command else self._fetches[entry]
            self.launch(
                [
                    Travel(number, entry, slot, shard, dict(values), use, command)
                    for shard in range(self._mesh.tp)
                ]
            )
        return number

    def _hung(self, number: int) -> WorkerError:
        """Who is to blame that run ``number`` has not ended."""
        statuses = list(enumerate(self.statuses()))
        late = [(r, s) for r, s in statuses if s.number < number or (s.number == number and s.phase != IDLE)]
        # who computes holds up others; else the first that does not wait for its group has stopped
        culprit, _ = min(late, key=lambda one: _BLAME.index(one[1].phase), default=(None, None))
        if culprit is None:
            return WorkerError(self._name, "gave no answer in time")
        fix = "give more time with timeout=…, or look whether its machine is overloaded"
        return WorkerError(f"{self._name}, {self.describe(culprit)}", "gave no answer in time", fix)
