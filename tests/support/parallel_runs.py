"""Run small plans with the executors and compare: what the tests of faults share."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from miaotui.compiler.manifest import Entry
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.runtime.parallel.options import ParallelOptions
from miaotui.runtime.parallel.processes import ProcessReplica
from miaotui.runtime.parallel.ray_actors import RayReplica
from miaotui.runtime.parallel.runner import ParallelModel, ParallelRunner

from .plans import CLASSES, WIDTH, run_whole, spec, write_plan

MAIN = Entry((spec("x", WIDTH),), (spec("h", WIDTH), spec("y", CLASSES)))


def opened(folder: Path, executor: str, mesh: Mesh | None = None) -> ParallelRunner:
    """A plan of ``mesh`` (default: two stages), written into ``folder`` and run by ``executor``."""
    write_plan(folder, mesh or Mesh(pp=2))
    return ParallelModel(folder, MAIN, options=ParallelOptions.parse(executor)).open(1)


def pids(runner: ParallelRunner, member: int = 0) -> list[int]:
    """Of the workers of a replica, by stage, then shard."""
    replica = runner._open().members[member].current()[0]
    assert isinstance(replica, ProcessReplica | RayReplica)
    return replica.pids


def batch(number: int, rows: int = 5) -> np.ndarray:
    """An input float32[rows, WIDTH] of its own for every ``number``."""
    return np.random.default_rng(number).standard_normal((rows, WIDTH)).astype(np.float32)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody has now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_for_port(port: int, seconds: float = 60.0) -> None:
    """Return once somebody takes connections there. Raises: OSError at the end of ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def check(found: dict[str, np.ndarray], number: int) -> None:
    """That ``found`` is what the whole program gives for ``batch(number)``."""
    for name, wanted in run_whole(batch(number)).items():
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)
