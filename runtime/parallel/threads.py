"""A replica in this process: a thread for each rank, which hands on arrays where they lie."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

from ...compiler.errors import WorkerError
from ...compiler.options import Target
from ...compiler.parallel.plan import Plan
from ...compiler.reference import Array
from .meeting import Alone, ExchangeGroup, Group
from .relay import Rank, Relay
from .share import ShareRunner
from .work import Status, Travel

Inbox: TypeAlias = "SimpleQueue[Travel | None]"


QUICK = 200e-6
"""Seconds up to which a stage is run by the thread that ran the one before: a hand-over costs some ten µs."""


class Seat:
    """A rank with its inbox: who hands runs to it may run it itself while nothing waits there.

    ``given`` counts what was put into the inbox, ``done`` what was taken and handed on: where they are equal
    the rank's own thread sleeps, and only who hands on to it can change that. ``seconds``: its last run's.
    """

    __slots__ = ("done", "given", "inbox", "next", "rank", "seconds")

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.inbox: Inbox = SimpleQueue()
        self.next: Seat | None = None
        self.given = self.done = 0
        self.seconds = math.inf

    def put(self, travel: Travel) -> None:
        """Leave a run to the rank's own thread."""
        self.given += 1
        self.inbox.put(travel)

    def handle(self, travel: Travel) -> None:
        """Do the rank's part of a run."""
        start = time.perf_counter()
        self.rank.handle(travel)
        if travel.command is None:
            self.seconds = time.perf_counter() - start

    @property
    def is_quick(self) -> bool:
        """Whether it idles, and what it does takes less than handing it over is worth."""
        return self.given == self.done and self.seconds < QUICK

    def serve(self, arrived: Callable[[Travel], None]) -> None:
        """Be the rank's thread: what comes in is handled and handed on, until it is asked to end."""
        with self.rank.share:
            while (travel := self.inbox.get()) is not None:
                self.handle(travel)
                seat = self.next
                # others that wait here could run meanwhile: then stages work side by side
                while seat is not None and seat.is_quick and self.inbox.empty():
                    seat.handle(travel)
                    seat = seat.next
                if seat is None:
                    arrived(travel)
                else:
                    seat.put(travel)
                self.done += 1


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

    def launch(self, travels: Sequence[Travel]) -> None:
        """Put each shard's way into its rank's inbox."""
        for travel in travels:
            self._seats[travel.shard].put(travel)

    def statuses(self) -> Sequence[Status]:
        """Of all ranks."""
        return self._statuses

    def stop(self) -> None:
        """Ask all ranks to end after what they are at."""
        for box in self._boxes:
            box.put(None)
        for seat in self._seats:
            seat.inbox.put(None)


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
