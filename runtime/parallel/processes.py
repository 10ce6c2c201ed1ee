"""A replica as processes of this machine: sockets carry what runs are, shared memory their arrays."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...compiler.errors import ArtifactError, WorkerError
from ...compiler.options import Target
from ...compiler.parallel.mesh import Mesh
from ...compiler.parallel.plan import Plan
from ...compiler.reference import Arrays
from .arena import Reader, Writer, shared_folder
from .options import ParallelOptions
from .relay import Relay
from .version import own_version
from .wire import collect
from .work import Status, Travel
from .worker import Assignment, Channel, Hello, statuses

PREFIX = "miaotui-"
"""Begins the name of a replica's folder of shared memory, which is gone when the replica is."""


class ProcessReplica(Relay):
    """Ranks as processes, each with its own files mapped. They end when this process does, however it ends.

    Raises: WorkerError if one does not start in time, ArtifactError if one is of another version or does
    not find what the plan says.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        name: str,
        *,
        options: ParallelOptions,
        target: Target,
        threads: int = 1,
    ) -> None:
        super().__init__(plan, name, 2 * plan.mesh.pp)
        mesh = self._mesh
        self._memory = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=shared_folder()))
        self._remove = weakref.finalize(self, shutil.rmtree, self._memory, True)
        self._statuses = statuses(self._memory, mesh.size)
        self._writer, self._reader = Writer(self._memory, "caller"), Reader(self._memory)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._listener: threading.Thread | None = None
        self._controls: list[Channel] = []
        try:
            self._inlets = self._spawn(folder, options, target, threads)
            self._greet(options.start_timeout)
        except BaseException:
            self.close()
            raise
        self._listener = threading.Thread(target=self._listen, name=f"{name} listener", daemon=True)
        self._listener.start()

    @property
    def pids(self) -> list[int]:
        """Of the workers, by stage, then shard."""
        return [process.pid for process in self._processes]

    def _spawn(self, folder: Path, options: ParallelOptions, target: Target, threads: int) -> list[Channel]:
        """Start all workers; the sockets that take runs."""
        mesh = self._mesh
        into = [_pair() for _ in range(mesh.size)]
        between = {
            (stage, a, b): _pair() for stage in range(mesh.pp) for b in range(mesh.tp) for a in range(b)
        }
        gloo = [_gloo_address(options, mesh) for _ in range(mesh.pp)]
        for rank in range(mesh.size):
            stage, shard = divmod(rank, mesh.tp)
            control, theirs = _pair()
            self._controls.append(Connection(control.detach()))
            upstream = into[rank][1]
            downstream = None if stage == mesh.pp - 1 else into[rank + mesh.tp][0]
            peers = {b: pair[0] for (s, a, b), pair in between.items() if (s, a) == (stage, shard)}
            peers |= {a: pair[1] for (s, a, b), pair in between.items() if (s, b) == (stage, shard)}
            mine = [theirs, upstream, *peers.values(), *([] if downstream is None else [downstream])]
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", f"{__package__}.worker", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[end.fileno() for end in mine],
                    env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                )
            )
            self._controls[-1].send(
                Assignment(
                    folder=folder,
                    stage=stage,
                    shard=shard,
                    ranks=mesh.size,
                    tp=mesh.tp,
                    target=target,
                    threads=threads,
                    memory=self._memory,
                    upstream=upstream.fileno(),
                    downstream=None if downstream is None else downstream.fileno(),
                    peers={place: end.fileno() for place, end in peers.items()},
                    timeout=options.timeout,
                    gloo=gloo[stage],
                )
            )
            theirs.close()
        for _, end in into:
            end.close()
        for pair in between.values():
            for end in pair:
                end.close()
        for end, _ in into[mesh.tp :]:
            end.close()
        return [Connection(end.detach()) for end, _ in into[: mesh.tp]]

    def _greet(self, timeout: float) -> None:
        """Wait until all workers are ready."""
        deadline = time.monotonic() + timeout
        for rank, control in enumerate(self._controls):
            place = f"{self._name}, {self.describe(rank)}"
            if not control.poll(max(0.0, deadline - time.monotonic())):
                fact = f"did not start within {timeout:g} s"
                raise WorkerError(place, fact, "give more with start_timeout=…")
            try:
                hello: Hello = control.recv()
            except (EOFError, OSError):
                raise self._lost(rank) from None
            check_hello(hello, place)

    def launch(self, travels: Sequence[Travel]) -> None:
        """Send each shard's way to its rank of stage 0."""
        for travel in travels:
            # a worker that is gone is the listener's business
            with suppress(OSError):
                self._inlets[travel.shard].send(travel)

    def statuses(self) -> Sequence[Status]:
        """Of all ranks."""
        return self._statuses

    def give(self, slot: int, feeds: Arrays) -> Mapping[str, Any]:
        """Feeds in shared memory."""
        return self._writer.write(slot, feeds)

    def taken(self, values: Mapping[str, Any]) -> Arrays:
        """What the entry gives, copied: the slot is written again."""
        return self._reader.copies(values)

    def describe(self, rank: int) -> str:
        """With its process."""
        known = f" (process {self._processes[rank].pid})" if rank < len(self._processes) else ""
        return f"{super().describe(rank)}{known}"

    def stop(self) -> None:
        """Kill all workers, those that stand still too, and free the shared memory."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        listener = self._listener
        if listener is not None and listener is not threading.current_thread():
            listener.join()
        for connection in (*self._controls, *getattr(self, "_inlets", ())):
            connection.close()
        self._remove()

    def _listen(self) -> None:
        """Collect what comes back, until a worker is gone."""
        gone = collect(self._controls, self.arrived)
        if self.broken is None:
            self.kill(self._lost(gone))

    def _lost(self, rank: int) -> WorkerError:
        """A worker is gone: how it ended."""
        process = self._processes[rank]
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            code = 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WorkerError(f"{self._name}, {self.describe(rank)}", how)


def check_hello(hello: Hello, place: str) -> None:
    """Raises: what kept the worker from starting, ArtifactError if it is of another version."""
    if hello.version != own_version():
        fact = f"is of miaotui {hello.version or '(not installed)'}, this is {own_version()}"
        raise ArtifactError(place, fact, "install the same version everywhere")
    if hello.error is not None:
        raise hello.error


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def _gloo_address(options: ParallelOptions, mesh: Mesh) -> str:
    """Where the shards of a stage meet, if they are to meet through torch."""
    if mesh.tp == 1 or options.collectives not in ("gloo", "nccl"):
        return ""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"{options.collectives}://127.0.0.1:{free.getsockname()[1]}"
