"""All replicas of a partitioned program: deals out runs, tries again what was lost, replaces what broke."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

from ...compiler.closing import Closing
from ...compiler.errors import InternalError, Problem, UnsupportedError, WorkerError
from ...compiler.parallel.plan import BACKENDS, Collective, Part, Plan
from ...compiler.reference import Arrays
from .options import ParallelOptions
from .splitting import Piece, cut, fixed_rows, joined, pieces, rows_of
from .work import Command, Replica, Use

MakeReplica: TypeAlias = Callable[[str], Replica]


@dataclass(slots=True)
class Job:
    """A run for one replica. ``prepare`` is called with the replica and its generation before it."""

    member: int
    feeds: Arrays
    use: Use | None = None
    prepare: Callable[[Replica, int], None] | None = None
    done: Callable[[], None] | None = None
    attempts: int = 0


class Member:
    """A replica and those that take its place: ``generation`` counts them."""

    def __init__(self, number: int, make: MakeReplica, starter: ThreadPoolExecutor) -> None:
        self.generation = 0
        self._name, self._make, self._starter = f"replica {number}", make, starter
        self._lock = threading.Lock()
        # both at once: one of an old generation must not pass for the new one's
        self.live: tuple[Replica, int] | None = None
        self._failed: Future[Replica] | None = None
        self._starting: Future[Replica] = starter.submit(make, self._name)

    def current(self) -> tuple[Replica, int]:
        """The replica, once it has started. Raises: what kept it from starting."""
        live = self.live
        if live is not None and live[0].broken is None:
            return live
        with self._lock:
            if self._starting is self._failed:
                self._renew()
            starting, generation = self._starting, self.generation
        try:
            replica = starting.result()
        except BaseException:
            self._failed = starting  # whoever asks next starts another
            raise
        if replica.broken is not None:
            self.renew(generation, replica.broken)
            return self.current()
        with self._lock:
            if self.generation == generation:
                self.live = replica, generation
        return replica, generation

    def renew(self, generation: int, reason: WorkerError) -> None:
        """End the replica of that generation, if it is still the current one, and start the next."""
        with self._lock:
            if self.generation != generation:
                return
            old, self.live = self._starting, None
            self._renew()
        if old.done() and old.exception() is None:
            old.result().kill(reason)

    def _renew(self) -> None:
        self.generation += 1
        self._starting = self._starter.submit(self._make, self._name)

    def close(self) -> None:
        """End the replica."""
        starting, self.live = self._starting, None
        if not starting.cancel():
            try:
                starting.result().close()
            except Exception:  # it never started, or could not
                return


class Pool(Closing):
    """The replicas of a plan, started. Calls may come from several threads. ``release``: called at its end.

    Raises: UnsupportedError if the plan asks for what executors don't do.
    """

    def __init__(
        self,
        plan: Plan,
        options: ParallelOptions,
        make: MakeReplica,
        place: str,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.plan, self.options, self.place = plan, options, place
        self._release = release
        if problems := _refused(plan, place):
            release()
            raise UnsupportedError.of(problems)
        start = time.perf_counter()
        self._starter = ThreadPoolExecutor(plan.mesh.dp, "miaotui replica")
        self._make, self._loaded = make, list[str]()
        self.members = [Member(number, self._started, self._starter) for number in range(plan.mesh.dp)]
        self._turn = itertools.count()
        self._fixed = {entry: fixed_rows(plan, entry) for entry in plan.entries}
        self._sessions = itertools.count(1)
        self.dropped: deque[tuple[str, int]] = deque()
        try:
            for member in self.members:
                member.current()
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - start

    @property
    def micro_batches(self) -> int:
        """Into how many a replica's rows are cut at most."""
        return self.options.micro_batches or self.plan.mesh.pp

    def new_session(self) -> int:
        """A number that no session has had."""
        return next(self._sessions)

    def load(self, entry: str) -> None:
        """Have all ranks open ``entry``, and those that take their places. Raises: whatever a rank raises."""
        for member in self.members:
            _load(member.current()[0], entry, self.options.start_timeout)
        self._loaded.append(entry)

    def _started(self, name: str) -> Replica:
        """A replica with everything open that runs need: its loading is no part of their time."""
        replica = self._make(name)
        try:
            for entry in dict.fromkeys(self._loaded):
                _load(replica, entry, self.options.start_timeout)
        except BaseException:
            replica.close()
            raise
        return replica

    def deadline(self) -> float:
        """When an attempt that begins now has taken too long."""
        return time.monotonic() + self.options.timeout

    def run(self, entry: str, arrays: Arrays) -> Arrays:
        """Outputs of an entry without state, by name.

        Raises: WorkerError if a worker was lost or hung in every attempt, whatever a rank raised.
        """
        wiring = self.plan.entries[entry]
        dealt = self._dealt(entry, arrays)
        jobs = [Job(p.member, cut(wiring, arrays, p.start, p.stop)) for p in dealt]
        if len(jobs) == 1 and (alone := self._alone(entry, jobs[0])) is not None:
            return joined(wiring, arrays, [alone])
        return joined(wiring, arrays, self.do(entry, jobs))

    def do(self, entry: str, jobs: Sequence[Job]) -> list[Arrays]:
        """What each job gives. Several are under way at once; one whose replica broke is begun again.

        Raises: as ``run``; no other job is under way any more then.
        """
        found: list[Arrays | None] = [None] * len(jobs)
        todo = deque(_interleaved(jobs))
        under_way: deque[_Running] = deque()
        self._drop()
        try:
            while todo or under_way:
                while todo and (running := self._start(entry, jobs, todo[0], bool(under_way))) is not None:
                    if running.number >= 0:
                        under_way.append(running)
                        todo.popleft()
                if not under_way:
                    continue
                running = under_way.popleft()
                job = jobs[running.job]
                try:
                    found[running.job] = running.replica.result(running.number, running.deadline)
                except WorkerError as error:
                    self._lost(job, running.generation, error)
                    todo.appendleft(running.job)
                    continue
                if job.done is not None:
                    job.done()
        except BaseException:
            for running in under_way:
                _discard(running)
            raise
        return [arrays for arrays in found if arrays is not None]

    def _alone(self, entry: str, job: Job) -> Arrays | None:
        """``do`` of one job where nothing is in its way, which is quick; None if something is."""
        live = self.members[job.member].live
        if live is None or self.dropped:
            return None
        replica, generation = live
        try:
            if (found := replica.at_once(entry, job.feeds)) is not None:
                return found
            number = replica.start(entry, job.feeds)
            return None if number is None else replica.result(number, self.deadline())
        except WorkerError as error:
            self._lost(job, generation, error)
            return None

    def _start(self, entry: str, jobs: Sequence[Job], number: int, busy: bool) -> _Running | None:
        """Begin a job; None if there is no room and others are to be waited for first."""
        job = jobs[number]
        member = self.members[job.member]
        replica, generation = member.current()
        deadline = self.deadline()
        try:
            if job.prepare is not None:
                job.prepare(replica, generation)
            begun = replica.start(entry, job.feeds, job.use)
            if begun is None:
                if busy:
                    return None
                replica.wait_for_room(deadline)
                return _Running(number, replica, generation, -1, deadline)
        except WorkerError as error:
            self._lost(job, generation, error)
            return _Running(number, replica, generation, -1, deadline)
        return _Running(number, replica, generation, begun, deadline)

    def _lost(self, job: Job, generation: int, error: WorkerError) -> None:
        """Replace the replica that lost ``job``; where it has no state, another takes it. Raises: at last."""
        self.members[job.member].renew(generation, error)
        job.attempts += 1
        if job.attempts > self.options.retries:
            raise error
        if job.use is None:
            job.member = (job.member + 1) % len(self.members)

    def _dealt(self, entry: str, arrays: Arrays) -> list[Piece]:
        rows = rows_of(self.plan.entries[entry], arrays)
        count = len(self.members)
        turn = next(self._turn) % count
        size = self._fixed[entry]
        if rows is None or (size is None and (rows == 1 or (count == 1 and self.micro_batches == 1))):
            return [Piece(turn)]
        if size is not None and rows % size:
            raise InternalError(f"{self.place}: {rows} rows for programs of {size}")
        members = range(count) if rows >= count * (size or 1) else [(turn + n) % count for n in range(count)]
        return pieces(rows, members, self.micro_batches, size)

    def _drop(self) -> None:
        """End sessions that nobody has any more: wherever they still are."""
        while self.dropped:
            try:
                entry, number = self.dropped.popleft()
            except IndexError:
                return
            for member in self.members:
                replica, generation = member.current()
                try:
                    replica.command(Command("drop", entry, number), self.deadline())
                except WorkerError as error:
                    member.renew(generation, error)

    def close(self) -> None:
        """End all replicas."""
        for member in self.members:
            member.close()
        self._starter.shutdown(wait=True)
        self._release()


@dataclass(slots=True)
class _Running:
    """A job under way; ``number`` below 0: it was not begun."""

    job: int
    replica: Replica
    generation: int
    number: int
    deadline: float = field(default=0.0)


def _load(replica: Replica, entry: str, seconds: float) -> None:
    replica.command(Command("load", entry), time.monotonic() + seconds)


def _discard(running: _Running) -> None:
    """Wait for a run that nobody wants any more, so that its slot is free again."""
    try:
        running.replica.result(running.number, running.deadline)
    except Exception:  # what it gives is not asked for
        return


def _interleaved(jobs: Sequence[Job]) -> list[int]:
    """Numbers of ``jobs`` so that all replicas get their first, then all their second, and so on."""
    seen: dict[int, int] = {}
    rank = []
    for number, job in enumerate(jobs):
        rank.append((seen.setdefault(job.member, 0), number))
        seen[job.member] += 1
    return [number for _, number in sorted(rank)]


def _refused(plan: Plan, place: str) -> list[Problem]:
    """What the plan asks for and no executor does."""
    found: dict[Problem, None] = {}
    for share in plan.shares:
        for steps in share.steps.values():
            for step in steps:
                if isinstance(step, Collective) and step.axis != "tp":
                    fact = f"collective {step.name!r} runs along {step.axis}, executors know tp"
                    found[Problem(place, fact, "upgrade miaotui")] = None
                if isinstance(step, Part) and step.backend not in BACKENDS:
                    fact = f"was built by backend {step.backend!r}, which partitioned programs can't run"
                    found[Problem(f"{place}: {step.file}", fact, "compile with --backend ort")] = None
    return list(found)


__all__ = ["Job", "Member", "Pool"]
