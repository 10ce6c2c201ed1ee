"""A replica in this process: a thread for each rank, which hands on arrays where they lie."""

from __future__ import annotations

import threading
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


class ThreadReplica(Relay):
    """Ranks as threads. One that hangs can't be ended: it is left behind, and ends when what it runs does."""

    def __init__(self, folder: Path, plan: Plan, name: str, *, target: Target, threads: int = 1) -> None:
        super().__init__(plan, name, 2 * plan.mesh.pp)
        mesh = self._mesh
        self._statuses = [Status() for _ in range(mesh.size)]
        self._inboxes: list[Inbox] = [SimpleQueue() for _ in range(mesh.size)]
        self._boxes: list[SimpleQueue[Any]] = []
        for rank, status in enumerate(self._statuses):
            stage, shard = divmod(rank, mesh.tp)
            if shard == 0:
                boxes = {(a, b): SimpleQueue[Any]() for a in range(mesh.tp) for b in range(mesh.tp)}
                self._boxes += boxes.values()
            group: Group = Alone() if mesh.tp == 1 else QueueGroup(shard, mesh.tp, status, boxes)
            share = ShareRunner(folder, plan, stage, shard, target=target, threads=threads)
            last = stage == mesh.pp - 1
            hand_on = self.arrived if last else self._inboxes[rank + mesh.tp].put
            work = partial(_serve, Rank(share, group, status), self._inboxes[rank], hand_on)
            threading.Thread(target=work, name=f"{name} {share.place}", daemon=True).start()

    def launch(self, travels: Sequence[Travel]) -> None:
        """Put each shard's way into its rank's inbox."""
        for travel in travels:
            self._inboxes[travel.shard].put(travel)

    def statuses(self) -> Sequence[Status]:
        """Of all ranks."""
        return self._statuses

    def stop(self) -> None:
        """Ask all ranks to end after what they are at."""
        for box in self._boxes:
            box.put(None)
        for inbox in self._inboxes:
            inbox.put(None)


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


def _serve(rank: Rank, inbox: Inbox, hand_on: Callable[[Travel], None]) -> None:
    with rank.share:
        while (travel := inbox.get()) is not None:
            rank.handle(travel)
            hand_on(travel)
