"""A replica as actors of a Ray cluster: Ray places and ends them, runs go straight from one to the next."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from ...compiler.errors import WorkerError, require
from ...compiler.options import Target
from ...compiler.parallel.check_plan import read_plan
from ...compiler.parallel.plan import Plan
from .meeting import Alone
from .options import ParallelOptions
from .processes import check_hello
from .ray_cluster import RANK, first_line, is_ours
from .relay import Rank, Relay
from .share import ShareRunner
from .version import own_version
from .wire import Address, Wire, accept, collect, connect, listening
from .work import RUNNING, Status, Travel
from .worker import Hello, hand_on, sendable

_REACH = 5.0
"""Seconds to connect all ranks and the caller. Where that fails, Ray carries what travels."""

_ASKED = 3.0
"""Seconds to hear from every actor whether it lives."""


class Worker:
    """A rank as an actor. ``key``: what whoever sends it runs must have."""

    def __init__(
        self, folder: str, stage: int, shard: int, target: Target, threads: int, version: str, key: bytes
    ) -> None:
        self._hello, self._key, self._status = Hello(own_version()), key, Status()
        try:
            if version == self._hello.version:
                plan = read_plan(Path(folder), version)
                self._share = ShareRunner(Path(folder), plan, stage, shard, target=target, threads=threads)
                self._rank = Rank(self._share, Alone(), self._status)
        except Exception as error:
            self._hello = Hello(own_version(), sendable(error, f"stage {stage} shard {shard}"))

    def hello(self) -> Hello:
        """Its version, and what is wrong with it."""
        return self._hello

    def status(self) -> Status:
        """What it is at."""
        return self._status

    def meeting_place(self) -> str:
        """Where others of its group can meet it."""
        with listening(_host()) as free:
            host, port = free.getsockname()[:2]
            return f"{host}:{port}"

    def join(self, address: str, place: int, size: int, timeout: float) -> None:
        """Form a group with others. Raises: as TorchGroup."""
        from .gloo import TorchGroup

        group = TorchGroup(address, place, size, timeout, status=self._status)
        self._rank = Rank(self._share, group, self._status)

    def listen(self) -> Address:
        """Where it waits for who sends it runs."""
        self._server = listening(_host())
        host, port = self._server.getsockname()[:2]
        return host, port

    def serve(self, following: Address | None, seconds: float) -> str:
        """Take runs from who connects, and hand them on to ``following``, or else to the caller who connects.

        Returns once all are connected: what is in the way, empty if nothing is.
        """
        wires: dict[str, Wire] = {}
        deadline = time.monotonic() + seconds
        try:
            if following is not None:
                wires["answers"] = connect(following, self._key, "runs", seconds)
            with self._server as server:
                while len(wires) < 2:
                    role, wire = accept(server, self._key, deadline)
                    wires[role] = wire
        except (OSError, EOFError) as error:
            for wire in wires.values():
                wire.close()
            return first_line(error)
        threading.Thread(target=self._serve, args=(wires["runs"], wires["answers"]), daemon=True).start()
        return ""

    def _serve(self, runs: Wire, answers: Wire) -> None:
        try:
            hand_on(self._rank, runs, answers)
        finally:  # whoever is behind learns that nothing comes any more
            runs.hang_up()
            answers.hang_up()

    def step(self, travel: Travel) -> Travel:
        """Its part of a run that Ray carries."""
        self._rank.handle(travel)
        if travel.error is not None:
            travel.error = sendable(travel.error, self._share.place)
        return travel


def _host() -> str:
    import ray.util

    return str(ray.util.get_node_ip_address())


class RayReplica(Relay):
    """Ranks as plain actors in a placement group, which Ray keeps on nodes that have room for them.

    Ray is to be ``connected``. Where this process can't reach the actors, as behind ``ray://``, or they not
    each other, Ray passes runs on. ``pids``: of the workers on their nodes, by stage, then shard.
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
        super().__init__(plan, name, 2 * plan.mesh.pp)
        self._ray: Any = require("ray", extra="ray")
        self._workers: list[Any] = []
        self.pids: list[int] = []
        self._hosts: list[str] = []
        self._placement: Any = None
        self._inlets: list[Wire] = []
        self._outlets: list[Wire] = []
        self._outbox: SimpleQueue[Sequence[Travel] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        try:
            self._start(folder, options, target, threads)
        except BaseException:
            self.close()
            raise

    @property
    def is_direct(self) -> bool:
        """Whether runs travel from rank to rank without Ray."""
        return bool(self._inlets)

    def _start(self, folder: Path, options: ParallelOptions, target: Target, threads: int) -> None:
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ray, mesh = self._ray, self._mesh
        deadline = time.monotonic() + options.start_timeout
        each: dict[str, float] = {RANK: 1} if is_ours() else {"CPU": threads}
        each |= {"GPU": 1} if target.device == "cuda" else {}
        self._placement = placement_group([dict(each) for _ in range(mesh.size)], options.placement)
        if not self._placement.wait(options.start_timeout):
            fact = f"the cluster has no room for {mesh.size} ranks of {each}"
            raise WorkerError(self._name, fact, "add nodes, or give each rank fewer threads")
        kind = ray.remote(Worker)
        key = os.urandom(32)
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
            self._workers.append(actor.remote(str(folder), stage, shard, target, threads, own_version(), key))
        hellos = self._got([worker.hello.remote() for worker in self._workers], deadline, "did not start")
        for rank, hello in enumerate(hellos):
            check_hello(hello, f"{self._name}, {self.describe(rank)}")
            self.pids.append(hello.pid)
        if mesh.tp > 1:
            self._meet(options, target, deadline)
        self._connect(key, deadline)

    def _meet(self, options: ParallelOptions, target: Target, deadline: float) -> None:
        """Form the group of each stage."""
        mesh = self._mesh
        backend = options.collectives if options.collectives in ("gloo", "nccl") else ""
        backend = backend or ("nccl" if target.device == "cuda" else "gloo")
        heads = [self._workers[stage * mesh.tp] for stage in range(mesh.pp)]
        where = self._got([head.meeting_place.remote() for head in heads], deadline, "gave no address")
        joined = [
            worker.join.remote(
                f"{backend}://{where[rank // mesh.tp]}", rank % mesh.tp, mesh.tp, options.timeout
            )
            for rank, worker in enumerate(self._workers)
        ]
        self._got(joined, deadline, "did not form its group")

    def _connect(self, key: bytes, deadline: float) -> None:
        """Wires from the caller to stage 0, from there to stage 1, and so on, and back; none if one fails."""
        tp, last = self._mesh.tp, self._mesh.size - self._mesh.tp
        where = self._got([worker.listen.remote() for worker in self._workers], deadline, "gave no address")
        self._hosts = [host for host, _ in where]
        serving = [
            worker.serve.remote(following, _REACH)
            for worker, following in zip(self._workers, [*where[tp:], *[None] * tp], strict=True)
        ]
        wires: list[Wire] = []
        with suppress(OSError):
            wires += (connect(address, key, "runs", _REACH) for address in where[:tp])
            wires += (connect(address, key, "answers", _REACH) for address in where[last:])
        problems = self._got(serving, deadline, "did not connect")
        if len(wires) < 2 * tp or any(problems):
            for wire in wires:
                wire.close()
            return
        self._inlets, self._outlets = wires[:tp], wires[tp:]
        for work in (self._send, self._listen):
            thread = threading.Thread(target=work, name=f"{self._name} {work.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def launch(self, travels: Sequence[Travel]) -> None:
        """Leave each shard's way to the sender: a rank that stands still must not hold up the caller."""
        if self.is_direct:
            self._outbox.put(travels)
            return
        for travel in travels:
            self._carry(travel)

    def _send(self) -> None:
        with suppress(OSError):  # a worker that is gone is the listener's business
            while (travels := self._outbox.get()) is not None:
                for travel in travels:
                    self._inlets[travel.shard].send(travel)

    def _listen(self) -> None:
        """Collect what comes back, until a worker is gone."""
        collect(self._outlets, self.arrived)
        if self.broken is None:
            self.kill(self._lost())

    def _carry(self, travel: Travel) -> None:
        """Have Ray pass a way on from actor to actor."""
        try:
            ref: Any = travel
            for worker in self._workers[travel.shard :: self._mesh.tp]:
                ref = worker.step.remote(ref)
            ref.future().add_done_callback(partial(self._carried, travel.number))
        except Exception as error:
            self.failed(travel.number, WorkerError(self._name, first_line(error)))

    def _carried(self, number: int, done: Any) -> None:
        error = done.exception()
        if error is None:
            self.arrived(done.result())
        else:
            self.failed(number, WorkerError(self._name, f"lost a worker: {first_line(error)}"))

    def statuses(self) -> Sequence[Status]:
        """Of all ranks; one that does not answer computes something that never ends."""
        refs = [worker.status.remote() for worker in self._workers]
        self._ray.wait(refs, num_returns=len(refs), timeout=_ASKED)
        return [self._answer(ref) or Status(0, RUNNING) for ref in refs]

    def _answer(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref, timeout=0)
        except Exception:  # late, or its actor is gone
            return None

    def describe(self, rank: int) -> str:
        """With its process."""
        known = f" (process {self.pids[rank]} on {self._hosts[rank]})" if rank < len(self._hosts) else ""
        return f"{super().describe(rank)}{known}"

    def stop(self) -> None:
        """End all actors, those that stand still too."""
        from ray.util.placement_group import remove_placement_group

        for worker in self._workers:
            with suppress(Exception):
                self._ray.kill(worker)
        if self._placement is not None:
            with suppress(Exception):
                remove_placement_group(self._placement)
        self._outbox.put(None)
        wires = (*self._inlets, *self._outlets)
        for wire in wires:
            wire.hang_up()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        for wire in wires:
            wire.close()

    def _lost(self) -> WorkerError:
        """Which worker is gone, as Ray knows."""
        deadline = time.monotonic() + _ASKED
        asked = {worker.hello.remote(): rank for rank, worker in enumerate(self._workers)}
        while asked and (left := deadline - time.monotonic()) > 0:
            ready, _ = self._ray.wait(list(asked), timeout=left)
            for ref in ready:
                rank = asked.pop(ref)
                try:
                    self._ray.get(ref)
                except Exception as error:
                    return WorkerError(f"{self._name}, {self.describe(rank)}", first_line(error))
        if asked:  # Ray may not know yet
            return WorkerError(f"{self._name}, {self.describe(min(asked.values()))}", "is gone")
        return WorkerError(self._name, "lost a connection between its ranks")

    def _got(self, refs: Sequence[Any], deadline: float, fact: str) -> list[Any]:
        """What ``refs`` of all ranks stand for. Raises: WorkerError if one is gone, or at the deadline."""
        try:
            found: list[Any] = self._ray.get(list(refs), timeout=max(0.0, deadline - time.monotonic()))
        except self._ray.exceptions.GetTimeoutError:
            late = next((rank for rank, ref in enumerate(refs) if not self._ray.wait([ref], timeout=0)[0]), 0)
            fix = "give more time with start_timeout=…, or look whether its node is overloaded"
            raise WorkerError(f"{self._name}, {self.describe(late)}", fact, fix) from None
        except Exception as error:
            raise WorkerError(self._name, f"lost a worker: {first_line(error)}") from error
        return found
