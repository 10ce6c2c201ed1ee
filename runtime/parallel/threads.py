"""A replica in this process: a thread for each rank, which hands on arrays where they lie."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

from ...compiler.errors import WorkerError
from ...compiler.options import Target
from ...compiler.parallel.plan import Plan
from ...compiler.reference import Array, Arrays
from .meeting import Alone, ExchangeGroup, Group
from .relay import Rank, Relay
from .share import ShareRunner
from .work import Status, Travel

Inbox: TypeAlias = "SimpleQueue[Travel | None]"
Form: TypeAlias = tuple[str | tuple[int, ...], ...]

QUICK = 200e-6
"""Seconds up to which a stage is run by whoever hands it a run: waking its thread costs some ten µs."""

_FORMS = 256
"""Forms whose times a rank remembers."""


class Seat:
    """A rank with its inbox: who hands a run to it may do the rank's part itself while the rank idles.

    ``given`` counts runs handed to it, ``done`` those it has done and handed on: where they are equal the
    rank's own thread sleeps, and only who may hand runs to it can change that. ``turn`` is held from a run's
    begin until it is handed on, so that runs keep their order.
    """

    __slots__ = ("_seconds", "done", "given", "inbox", "next", "rank", "turn")

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.inbox: Inbox = SimpleQueue()
        self.next: Seat | None = None
        self.given = self.done = 0
        self.turn = threading.Lock()
        self._seconds: dict[Form, float] = {}

    def put(self, travel: Travel) -> None:
        """Leave a run to the rank's own thread."""
        self.given += 1
        self.inbox.put(travel)

    def handle(self, travel: Travel) -> None:
        """Do the rank's part of a run; how long it took is remembered by the run's form."""
        start = time.perf_counter()
        self.rank.handle(travel)
        if travel.form is not None:
            if len(self._seconds) >= _FORMS:
                self._seconds.clear()
            self._seconds[travel.form] = time.perf_counter() - start

    def is_quick(self, form: Form | None) -> bool:
        """Whether it idles, and took less than handing over is worth for the last run of this form."""
        return self.given == self.done and form in self._seconds and self._seconds[form] < QUICK

    def serve(self, arrived: Callable[[Travel], None]) -> None:
        """Be the rank's thread: what comes in is handled and handed on, until it is asked to end."""
        with self.rank.share:
            while (travel := self.inbox.get()) is not None:
                with self.turn:
                    self.handle(travel)
                    seat = self.next
                    # others that wait here could run meanwhile: then stages work side by side
                    while seat is not None and seat.is_quick(travel.form) and self.given == self.done + 1:
                        seat.handle(travel)
                        seat = seat.next
                    if seat is None:
                        arrived(travel)
                    else:
                        seat.put(travel)
                    self.done += 1
            with self.turn:  # somebody else may do its part right now
                pass
        if self.next is not None:
            self.next.inbox.put(None)


class ThreadReplica(Relay):
    """Ranks as threads. One that hangs can't be ended: it is left behind, and ends when what it runs does."""

    def __init__(self, folder: Path, plan: Plan, name: str, *, target: Target, threads: int = 1) -> None:
        super().__init__(plan, name, 2 * plan.mesh.pp)
        mesh = self._mesh
        self._statuses = [Status() for _ in range(mesh.size)]
        self._seats: list[Seat] = []
        self._boxes: list[SimpleQueue[Any]] = []
        for rank, status in enumerate(self._statuses):
            stage, shard = divmod(rank, mesh.tp)
            if shard == 0:
                boxes = {(a, b): SimpleQueue[Any]() for a in range(mesh.tp) for b in range(mesh.tp)}
                self._boxes += boxes.values()
            group: Group = Alone() if mesh.tp == 1 else QueueGroup(shard, mesh.tp, status, boxes)
            share = ShareRunner(folder, plan, stage, shard, target=target, threads=threads)
            self._seats.append(Seat(Rank(share, group, status)))
        for rank, seat in enumerate(self._seats):
            if rank + mesh.tp < mesh.size:
                seat.next = self._seats[rank + mesh.tp]
        for seat in self._seats:
            work = partial(seat.serve, self.arrived)
            threading.Thread(target=work, name=f"{name} {seat.rank.share.place}", daemon=True).start()

    def at_once(self, entry: str, feeds: Arrays) -> Arrays | None:
        """A run by the calling thread, which wakes no other; None where ranks are to do it themselves.

        Nobody can end it at a deadline. So that is for runs like one that every rank did in QUICK before,
        the first time by its own thread while the caller watched the time, and where all ranks idle.
        """
        form = _form(entry, feeds)
        first = self._seats[0]
        with self._sending:
            if self._mesh.tp > 1 or self.broken or not all(seat.is_quick(form) for seat in self._seats):
                return None
            first.given += 1
            first.turn.acquire()
            number = next(self._numbers)
        travel = Travel(number, entry, -1, 0, dict(feeds), form=form)
        try:
            for seat in self._seats:
                seat.handle(travel)
        finally:
            first.done += 1
            first.turn.release()
        if travel.error is not None:
            raise travel.error
        return {name: travel.values[name] for name in self._fetches[entry]}

    def launch(self, travels: Sequence[Travel]) -> None:
        """Put each shard's way into its rank's inbox."""
        for travel in travels:
            if travel.command is None:
                travel.form = _form(travel.entry, travel.values)
            self._seats[travel.shard].put(travel)

    def statuses(self) -> Sequence[Status]:
        """Of all ranks."""
        return self._statuses

    def stop(self) -> None:
        """Ask all ranks to end, one after the other, after what they are at."""
        for box in self._boxes:
            box.put(None)
        for seat in self._seats[: self._mesh.tp]:
            seat.inbox.put(None)


def _form(entry: str, feeds: Mapping[str, Array]) -> Form:
    """What tells how long a run takes: its entry, and the shapes of what it is fed."""
    return entry, *(array.shape for array in feeds.values())


class QueueGroup(ExchangeGroup):
    """Threads of a process; ``boxes``: from each place to each."""

    def __init__(
        self, place: int, size: int, status: Status, boxes: dict[tuple[int, int], SimpleQueue[Any]]
    ) -> None:
        super().__init__(place, size, status)
        self._out = {peer: boxes[place, peer] for peer in range(size)}
        self._in = {peer: boxes[peer, place] for peer in range(size)}

    def send(self, peer: int, tag: tuple[int, int], given: Array | None) -> None:
        """Hand over the array itself."""
        self._out[peer].put((tag, given))

    def receive(self, peer: int) -> tuple[tuple[int, int], Array | None]:
        """The next message of ``peer``. Raises: WorkerError if the replica was ended."""
        found: tuple[tuple[int, int], Array | None] | None = self._in[peer].get()
        if found is None:
            raise WorkerError("collective", "its replica was ended")
        return found
