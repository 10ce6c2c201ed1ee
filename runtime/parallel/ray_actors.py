"""A replica as actors of a Ray cluster: Ray carries values between stages, torch.distributed collectives."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...compiler.errors import WorkerError, require
from ...compiler.options import Target
from ...compiler.parallel.check_plan import read_plan
from ...compiler.parallel.mesh import Mesh
from ...compiler.parallel.plan import EntryPlan, Plan
from ...compiler.reference import Arrays
from .meeting import Alone, Group
from .options import ParallelOptions
from .processes import check_hello
from .share import ShareRunner
from .version import own_version
from .work import Command, PeerFailedError, Status, Use
from .worker import Hello, sendable

RANK = "miaotui_rank"
"""What a cluster that we start ourselves has plenty of: on one machine there is always room for a rank."""

CALLER = -1
"""In place of a stage: who asked."""

_ERROR = ""
"""Name under which an error travels in place of values."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_DASHBOARD": "1",
    # without clusters Ray takes the loopback address: nobody outside reaches what we start here
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


class Worker:
    """A rank as an actor. Ray gives it runs in the order in which they were asked for."""

    def __init__(
        self, folder: str, stage: int, shard: int, target: Target, threads: int, version: str
    ) -> None:
        self._hello = Hello(own_version())
        self._group: Group = Alone()
        try:
            if version == self._hello.version:
                plan = read_plan(Path(folder), version)
                self._share = ShareRunner(Path(folder), plan, stage, shard, target=target, threads=threads)
                self._consumers = {e: consumers(w, stage, shard, plan.mesh) for e, w in plan.entries.items()}
        except Exception as error:
            self._hello = Hello(own_version(), sendable(error, f"stage {stage} shard {shard}"))

    def hello(self) -> Hello:
        """Its version, and what is wrong with it."""
        return self._hello

    def address(self) -> str:
        """Where others of its group can meet it."""
        import ray.util

        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"{host}:{free.getsockname()[1]}"

    def join(self, address: str, place: int, size: int, timeout: float) -> None:
        """Form a group with others. Raises: as TorchGroup."""
        from .gloo import TorchGroup

        self._group = TorchGroup(address, place, size, timeout, status=Status())

    def do(self, command: Command) -> Exception | None:
        """Carry out a command; what went wrong."""
        try:
            self._share.do(command)
        except Exception as error:
            return sendable(error, self._share.place)
        return None

    def run(self, number: int, entry: str, use: Use | None, feeds: Arrays, *before: Mapping[str, Any]) -> Any:
        """What each consumer gets, by name; all get the error if there is one."""
        share, wanted = self._share, self._consumers[entry]
        values: dict[str, Any] = dict(feeds)
        for given in before:
            values |= given
        error: Exception | None = values.get(_ERROR)
        made: Arrays = {}
        self._group.begin(number, share.meetings.get(entry, 0))
        if error is None:
            try:
                made = share.run(entry, {n: values[n] for n in share.reads[entry]}, self._group, use)
            except Exception as caught:
                error = sendable(caught, share.place)
        if error is not None:
            self._group.abort(number)
        gives = [
            {_ERROR: error} if error is not None else {n: made[n] for n in names} for names in wanted.values()
        ]
        return gives[0] if len(gives) == 1 else tuple(gives)


def consumers(wiring: EntryPlan, stage: int, shard: int, mesh: Mesh) -> dict[int, list[str]]:
    """Who gets what of a stage's shard: the next stage always, so that errors reach the end; the caller."""
    last = stage == mesh.pp - 1
    found: dict[int, list[str]] = {CALLER if last else stage + 1: []}
    for wire in wiring.wires:
        if wire.source == stage:
            for target in wire.targets:
                found.setdefault(target, []).append(wire.spec.name)
    for fetch in wiring.fetches:
        if fetch.stage == stage and shard == 0:
            found.setdefault(CALLER, []).append(fetch.spec.name)
    return found


@dataclass(slots=True)
class _Run:
    """``answers``: refs of what comes back to the caller. ``done``: of each rank's first result, by stage."""

    answers: list[Any]
    done: list[tuple[int, Any]]
    fetches: tuple[str, ...]


class RayReplica:
    """Ranks as plain actors in a placement group, which Ray keeps on nodes that have room for them.

    Ray is to be ``connected``. ``pids``: of the workers on their nodes, by stage, then shard.
    Raises: WorkerError if the cluster has no room or a worker does not start in time,
    ArtifactError if one is of another version or does not find what the plan says on its node.
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
        self.broken: WorkerError | None = None
        self._plan, self._name = plan, name
        self._mesh = Mesh(1, plan.mesh.pp, plan.mesh.tp)
        self._ray: Any = require("ray", extra="ray")
        self._consumers = {
            (entry, stage, shard): consumers(wiring, stage, shard, self._mesh)
            for entry, wiring in plan.entries.items()
            for stage in range(self._mesh.pp)
            for shard in range(self._mesh.tp)
        }
        self._room = threading.BoundedSemaphore(2 * self._mesh.pp)
        self._numbers = itertools.count(1)
        self._runs: dict[int, _Run] = {}
        self._sending = threading.Lock()
        self._workers: list[Any] = []
        self.pids: list[int] = []
        self._placement: Any = None
        try:
            self._start(folder, options, target, threads)
        except BaseException:
            self.close()
            raise

    def _start(self, folder: Path, options: ParallelOptions, target: Target, threads: int) -> None:
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ray, mesh = self._ray, self._mesh
        deadline = time.monotonic() + options.start_timeout
        each: dict[str, float] = {RANK: 1} if _STATE["own"] else {"CPU": threads}
        each |= {"GPU": 1} if target.device == "cuda" else {}
        self._placement = placement_group([dict(each) for _ in range(mesh.size)], options.placement)
        if not self._placement.wait(options.start_timeout):
            fact = f"the cluster has no room for {mesh.size} ranks of {each}"
            raise WorkerError(self._name, fact, "add nodes, or give each rank fewer threads")
        kind = ray.remote(Worker)
        for rank in range(mesh.size):
            place = PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=rank)
            stage, shard = divmod(rank, mesh.tp)
            actor = kind.options(
                num_cpus=each.get("CPU", 0),
                num_gpus=each.get("GPU", 0),
                resources={RANK: 1} if RANK in each else {},
                scheduling_strategy=place,
                max_restarts=0,
            )
            self._workers.append(actor.remote(str(folder), stage, shard, target, threads, own_version()))
        hellos = self._got([worker.hello.remote() for worker in self._workers], deadline, "did not start")
        for rank, hello in enumerate(hellos):
            check_hello(hello, f"{self._name}, {self._describe(rank)}")
            self.pids.append(hello.pid)
        if mesh.tp > 1:
            self._meet(options, target, deadline)

    def _meet(self, options: ParallelOptions, target: Target, deadline: float) -> None:
        """Form the group of each stage."""
        mesh = self._mesh
        backend = options.collectives if options.collectives in ("gloo", "nccl") else ""
        backend = backend or ("nccl" if target.device == "cuda" else "gloo")
        heads = [self._workers[stage * mesh.tp] for stage in range(mesh.pp)]
        where = self._got([head.address.remote() for head in heads], deadline, "gave no address")
        joined = [
            worker.join.remote(
                f"{backend}://{where[rank // mesh.tp]}", rank % mesh.tp, mesh.tp, options.timeout
            )
            for rank, worker in enumerate(self._workers)
        ]
        self._got(joined, deadline, "did not form its group")

    def start(self, entry: str, feeds: Arrays, use: Use | None = None) -> int | None:
        """Begin a run; its number, None while as many are under way as there is room for."""
        self._check()
        if not self._room.acquire(blocking=False):
            return None
        with self._sending:
            number = next(self._numbers)
            try:
                self._runs[number] = self._send(number, entry, feeds, use)
            except Exception as error:
                self._room.release()
                raise WorkerError(self._name, _line(error)) from error
        return number

    def _send(self, number: int, entry: str, feeds: Arrays, use: Use | None) -> _Run:
        mesh, wiring = self._mesh, self._plan.entries[entry]
        answers, done = [], []
        for shard in range(mesh.tp):
            sent: dict[int, list[Any]] = {}
            for stage in range(mesh.pp):
                own = {f.spec.name: feeds[f.spec.name] for f in wiring.feeds if stage in f.stages}
                takers = self._consumers[entry, stage, shard]
                run = self._workers[stage * mesh.tp + shard].run.options(num_returns=len(takers))
                refs = run.remote(number, entry, use, own, *sent.get(stage, ()))
                refs = [refs] if len(takers) == 1 else refs
                for taker, ref in zip(takers, refs, strict=True):
                    sent.setdefault(taker, []).append(ref)
                done.append((stage * mesh.tp + shard, refs[0]))
            answers += sent[CALLER]
        names = tuple(fetch.spec.name for fetch in wiring.fetches if fetch.stage >= 0)
        return _Run(answers, sorted(done, key=lambda pair: pair[0]), names)

    def result(self, number: int, deadline: float) -> Arrays:
        """Fetches of a run, by name. Raises: WorkerError, or whatever a rank raised."""
        run = self._runs.pop(number)
        try:
            given = self._got(run.answers, deadline, "gave no answer in time", run.done)
        finally:
            self._room.release()
        errors = [part[_ERROR] for part in given if _ERROR in part]
        if errors:
            raise next((e for e in errors if not isinstance(e, PeerFailedError)), errors[0])
        values = {name: value for part in given for name, value in part.items()}
        return {name: values[name] for name in run.fetches}

    def command(self, command: Command, deadline: float) -> None:
        """Have all ranks carry out ``command``, in order with runs. Raises: as ``result``."""
        self._check()
        with self._sending:
            refs = [worker.do.remote(command) for worker in self._workers]
        errors = self._got(refs, deadline, "gave no answer in time", list(enumerate(refs)))
        if any(errors):
            raise next(error for error in errors if error is not None)

    def wait_for_room(self, deadline: float) -> None:
        """Return once ``start`` may have room again. Raises: WorkerError at the deadline."""
        if not self._room.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise self.broken or WorkerError(self._name, "gave no answer in time")
        self._room.release()
        self._check()

    def kill(self, reason: WorkerError) -> None:
        """End all ranks at once; Ray fails the runs under way."""
        with self._sending:
            if self.broken is not None:
                return
            self.broken = reason
        from ray.util.placement_group import remove_placement_group

        for worker in self._workers:
            with suppress(Exception):
                self._ray.kill(worker)
        if self._placement is not None:
            with suppress(Exception):
                remove_placement_group(self._placement)

    def close(self) -> None:
        """End all ranks."""
        self.kill(WorkerError(self._name, "was closed", "open it again"))

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _describe(self, rank: int) -> str:
        return f"stage {rank // self._mesh.tp} shard {rank % self._mesh.tp}"

    def _got(
        self, refs: Sequence[Any], deadline: float, fact: str, done: Sequence[tuple[int, Any]] = ()
    ) -> list[Any]:
        """What ``refs`` stand for. Raises: WorkerError if a worker is gone, or at the deadline."""
        try:
            found: list[Any] = self._ray.get(list(refs), timeout=max(0.0, deadline - time.monotonic()))
        except self._ray.exceptions.GetTimeoutError:
            pairs = list(done) or list(enumerate(refs))
            late = next((rank for rank, ref in pairs if not self._ray.wait([ref], timeout=0)[0]), 0)
            fix = "give more time with timeout=…, or look whether its node is overloaded"
            raise WorkerError(f"{self._name}, {self._describe(late)}", fact, fix) from None
        except Exception as error:
            raise self.broken or WorkerError(self._name, f"lost a worker: {_line(error)}") from error
        return found


_STATE: dict[str, int] = {"users": 0, "own": 0}
_LOCK = threading.Lock()


def connected(options: ParallelOptions) -> Any:
    """Ray, connected to the cluster asked for, or to one of this machine that is started for it.

    Raises: ToolError without Ray, WorkerError if there is no such cluster.
    """
    if not options.address:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    ray: Any = require("ray", extra="ray")
    with _LOCK:
        if not ray.is_initialized():
            try:
                if options.address:
                    ray.init(address=options.address, log_to_driver=False, logging_level="error")
                else:
                    ray.init(
                        address="local",
                        num_cpus=1,
                        resources={RANK: 1 << 20},
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level="error",
                    )
            except Exception as error:
                place = f"--executor: ray: address {options.address!r}"
                raise WorkerError(place, _line(error), "start one with `ray start --head`") from error
            _STATE["own"] = 1
        _STATE["users"] += 1
    return ray


def disconnect() -> None:
    """One fewer needs Ray; the last one leaves, if it was us who connected."""
    with _LOCK:
        _STATE["users"] -= 1
        if _STATE["users"] == 0 and _STATE["own"]:
            _STATE["own"] = 0
            require("ray", extra="ray").shutdown()


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
