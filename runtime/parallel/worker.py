"""A rank as a process: ``python -m miaotui.runtime.parallel.worker FD``, told what to do over that socket."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ...compiler.errors import CompileError, WorkerError
from ...compiler.options import Target
from ...compiler.parallel.check_plan import read_plan
from ...compiler.reference import Array, Arrays
from .arena import Reader, Shared, Writer
from .meeting import Alone, ExchangeGroup, Group
from .relay import Rank
from .share import ShareRunner
from .version import own_version
from .wire import Wire
from .work import Status, Travel

Channel: TypeAlias = "Connection[Any, Any]"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is. Numbers are descriptors of sockets that it inherited.

    ``upstream``: where runs come from; ``downstream``: where they go, None: back to the caller; ``peers``: of
    each other place of its group. ``memory``: the folder of shared memory; ``gloo``: where its group meets,
    empty if over ``peers``.
    """

    folder: Path
    stage: int
    shard: int
    ranks: int
    tp: int
    target: Target
    threads: int
    memory: Path
    upstream: int
    downstream: int | None
    peers: Mapping[int, int]
    timeout: float
    gloo: str = ""


@dataclass(frozen=True, slots=True)
class Hello:
    """What a worker says when it is ready, or why it is not."""

    version: str
    error: Exception | None = None
    pid: int = field(default_factory=os.getpid)


class SharedStatus(Status):
    """A status that the caller can read at any time, even of a process that stands still."""

    __slots__ = ("_cells",)

    def __init__(self, cells: Array) -> None:
        self._cells = cells

    @property
    def number(self) -> int:
        """Of the run it is at."""
        return int(self._cells[0])

    @number.setter
    def number(self, value: int) -> None:
        self._cells[0] = value

    @property
    def phase(self) -> int:
        """What it does."""
        return int(self._cells[1])

    @phase.setter
    def phase(self, value: int) -> None:
        self._cells[1] = value


def statuses(memory: Path, ranks: int) -> list[SharedStatus]:
    """Of all ranks of a replica: in a file of its shared memory."""
    path = memory / "status"
    if not path.exists():
        path.write_bytes(bytes(16 * ranks))
    cells = np.memmap(path, np.int64, "r+", shape=(ranks, 2))
    return [SharedStatus(row) for row in np.asarray(cells)]


class SocketGroup(ExchangeGroup):
    """Processes of a machine: arrays lie in shared memory, sockets say that they are there."""

    def __init__(
        self, place: int, tp: int, status: Status, peers: Mapping[int, Channel], writer: Writer
    ) -> None:
        super().__init__(place, tp, status)
        self._sockets, self._writer, self._reader, self._turn = peers, writer, Reader(writer.folder), 0

    def prepare(self, given: Array) -> Array:
        """Copied into one of two places by turns: when a peer comes to the next but one, it has read this."""
        self._turn = 1 - self._turn
        self._given = self._writer.write(-1 - self._turn, {"": given})[""]
        return given

    def send(self, peer: int, tag: tuple[int, int], given: Array | None) -> None:
        """Say where it lies. Raises: WorkerError if the peer is gone."""
        try:
            self._sockets[peer].send((tag, None if given is None else self._given))
        except OSError as error:
            raise WorkerError(f"shard {peer}", "is gone") from error

    def receive(self, peer: int) -> tuple[tuple[int, int], Array | None]:
        """The next message of ``peer``. Raises: WorkerError if it is gone."""
        try:
            tag, block = self._sockets[peer].recv()
        except (OSError, EOFError) as error:
            raise WorkerError(f"shard {peer}", "is gone") from error
        return tag, None if block is None else self._reader.read(block)


class ProcessRank(Rank):
    """A rank whose values lie in shared memory."""

    def __init__(self, share: ShareRunner, group: Group, status: Status, writer: Writer) -> None:
        super().__init__(share, group, status)
        self._writer, self._reader = writer, Reader(writer.folder)

    def read(self, travel: Travel, names: Sequence[str]) -> Arrays:
        """Values where they lie."""
        return {name: self._reader.read(travel.values[name]) for name in names}

    def write(self, travel: Travel, made: Arrays) -> Mapping[str, Shared]:
        """Values copied into the run's slot."""
        return self._writer.write(travel.slot, made)


def serve(control: Channel) -> None:
    """Be the worker that ``control`` says, until whoever sends runs is gone."""
    given: Assignment = control.recv()
    caller = os.getppid()
    try:
        rank = _rank(given)
    except Exception as error:
        control.send(Hello(own_version(), sendable(error, "worker")))
        return
    upstream = Connection(given.upstream)
    downstream = control if given.downstream is None else Connection(given.downstream)
    control.send(Hello(own_version()))
    with rank.share:
        if hand_on(rank, upstream, downstream) and _outlives(caller):  # which can't clean up
            shutil.rmtree(given.memory, ignore_errors=True)


def hand_on(rank: Rank, upstream: Channel | Wire, downstream: Channel | Wire) -> bool:
    """Do the rank's part of what comes until one of both ends is gone; whether it is where runs come from."""
    while True:
        try:
            travel: Travel = upstream.recv()
        except (EOFError, OSError):
            return True
        rank.handle(travel)
        if travel.error is not None:
            travel.error = sendable(travel.error, rank.share.place)
        try:
            downstream.send(travel)
        except OSError:
            return False


def _outlives(caller: int, seconds: float = 10.0) -> bool:
    """Whether ``caller`` is gone. Its sockets close before that: it has ``seconds``, or ends this process."""
    deadline = time.monotonic() + seconds
    while os.getppid() == caller and time.monotonic() < deadline:
        time.sleep(0.01)
    return os.getppid() != caller


def _rank(given: Assignment) -> ProcessRank:
    plan = read_plan(given.folder, own_version())
    share = ShareRunner(
        given.folder, plan, given.stage, given.shard, target=given.target, threads=given.threads
    )
    number = given.stage * given.tp + given.shard
    writer = Writer(given.memory, f"rank{number}")
    status = statuses(given.memory, given.ranks)[number]
    group: Group = Alone()
    if given.gloo:
        from .gloo import TorchGroup

        group = TorchGroup(given.gloo, given.shard, given.tp, given.timeout, status=status)
    elif given.tp > 1:
        peers = {place: Connection(fd) for place, fd in given.peers.items()}
        group = SocketGroup(given.shard, given.tp, status, peers, writer)
    return ProcessRank(share, group, status, writer)


def sendable(error: Exception, place: str) -> Exception:
    """``error``, or one that says the same and can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does
        return CompileError(place, f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    from .worker import serve as serve_worker  # the module by its name: what is pickled must be of it

    serve_worker(Connection(int(sys.argv[1])))
