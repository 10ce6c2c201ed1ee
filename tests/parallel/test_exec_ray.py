"""Ranks as actors of a Ray cluster of two nodes on this machine: killed workers, a lost node, collectives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from miaotui.compiler.errors import ArtifactError, CompileError, WorkerError
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.parallel.options import ParallelOptions
from miaotui.runtime.parallel.ray_actors import RayReplica
from miaotui.runtime.parallel.ray_cluster import QUIET
from miaotui.runtime.parallel.runner import ParallelModel, ParallelRunner
from support.parallel_runs import batch, check, free_ports, opened, pids, wait_for_port
from support.stateful_plans import DECODING, SIGNATURE, write_greedily, write_stateful_plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, everything on the loopback address; nothing of it is left afterwards."""
    before = set(psutil.Process().children(recursive=True))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUIET.items():
            patch.setenv(name, value)
        import ray
        from ray.cluster_utils import Cluster

        memory = 80 << 20
        made = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 4, "object_store_memory": memory, "include_dashboard": False},
        )
        made.add_node(num_cpus=2, object_store_memory=memory)
        yield made
        assert not ray.is_initialized()
        made.shutdown()
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert psutil.wait_procs(left, 20)[1] == []


def executor(cluster: Any, options: str = "timeout=30") -> str:
    return f"ray{{address={cluster.address},{options}}}"


def replica_of(runner: ParallelRunner) -> RayReplica:
    replica = runner._open().members[0].current()[0]
    assert isinstance(replica, RayReplica)
    return replica


def test_killed_and_hung_actors_lose_nothing(cluster: Any, tmp_path: Path) -> None:
    with (
        opened(tmp_path, executor(cluster, "timeout=3"), Mesh(pp=2)) as runner,
        ThreadPoolExecutor(3) as callers,
    ):
        assert replica_of(runner).is_direct
        answers = [callers.submit(runner.run, {"x": batch(number)}) for number in range(40)]
        answers[7].result()
        os.kill(pids(runner)[1], signal.SIGKILL)
        for number, answer in enumerate(answers):
            check(answer.result(), number)
        os.kill(pids(runner)[0], signal.SIGSTOP)
        check(runner.run({"x": batch(41)}), 41)


def test_who_was_killed_or_hangs_is_named(cluster: Any, tmp_path: Path) -> None:
    with opened(tmp_path, executor(cluster, "timeout=2,retries=0"), Mesh(pp=2)) as runner:
        check(runner.run({"x": batch(0)}), 0)
        hung = pids(runner)[1]
        os.kill(hung, signal.SIGSTOP)
        large = {"x": batch(1, 1 << 17)}  # more than connections hold: who sends it is not held up either
        with pytest.raises(WorkerError, match=rf"stage 1 shard 0 \(process {hung} .*gave no answer in time"):
            runner.run(large)
        check(runner.run({"x": batch(2)}), 2)
        killed = pids(runner)[1]
        os.kill(killed, signal.SIGKILL)
        with pytest.raises(WorkerError, match=rf"stage 1 shard 0 \(process {killed} "):
            for number in range(100):
                check(runner.run({"x": batch(number)}), number)


def test_ray_carries_runs_where_actors_are_out_of_reach(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*given: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("miaotui.runtime.parallel.ray_actors.connect", unreachable)
    monkeypatch.setattr("miaotui.runtime.parallel.ray_actors._REACH", 0.2)
    with opened(tmp_path, executor(cluster, "timeout=20"), Mesh(pp=2)) as runner:
        assert not replica_of(runner).is_direct
        with ThreadPoolExecutor(3) as callers:
            answers = [callers.submit(runner.run, {"x": batch(number)}) for number in range(20)]
            answers[5].result()
            os.kill(pids(runner)[1], signal.SIGKILL)
            for number, answer in enumerate(answers):
                check(answer.result(), number)


def test_an_actor_of_another_version_is_refused(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import miaotui.runtime.parallel.processes as module

    monkeypatch.setattr(module, "own_version", lambda: "9.9.9")
    with pytest.raises(ArtifactError, match=r"stage 0 shard 0: is of miaotui .*, this is 9\.9\.9"):
        opened(tmp_path, executor(cluster))


def test_a_group_meets_through_torch_and_an_error_in_it_is_the_callers(cluster: Any, tmp_path: Path) -> None:
    write_stateful_plan(tmp_path, Mesh(pp=2, tp=2))
    options = ParallelOptions.parse(executor(cluster))
    with ParallelModel(tmp_path, SIGNATURE, "decode", DECODING, options=options).open(1) as runner:
        before = pids(runner)
        decoder = Decoder(runner, DECODING)
        with pytest.raises(CompileError, match="indices element out of data bounds") as caught:
            decoder.prefill(0, [1000])
        assert not isinstance(caught.value, WorkerError)
        decoder.prefill(0, [1, 2, 3])
        written = []
        for _ in range(4):
            written.append(int(decoder.tokens[0, 0]))
            decoder.step()
        assert written == write_greedily([1, 2, 3], 4)
        assert pids(runner) == before


def test_a_cluster_that_ray_start_made_is_reached_as_a_client(tmp_path: Path) -> None:
    port, client = free_ports(2)
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
    ]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--ray-client-server-port={client}"]
    command += ["--num-cpus=2", "--object-store-memory=80000000", "--include-dashboard=false"]
    settings = {**os.environ, **QUIET, "RAY_AUTH_MODE": "disabled"}
    with (
        pytest.MonkeyPatch.context() as patch,
        subprocess.Popen(command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as head,
    ):
        patch.setenv("RAY_AUTH_MODE", "disabled")
        try:
            wait_for_port(client)
            options = f"ray{{address=ray://127.0.0.1:{client},timeout=30,start_timeout=60}}"
            with opened(tmp_path, options, Mesh(pp=2)) as runner:
                check(runner.run({"x": batch(0)}), 0)
                os.kill(pids(runner)[1], signal.SIGKILL)
                check(runner.run({"x": batch(1)}), 1)
        finally:
            started = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            assert psutil.wait_procs([psutil.Process(head.pid), *started], 20)[1] == []


def test_ranks_of_a_lost_node_go_to_another(cluster: Any, tmp_path: Path) -> None:
    options = executor(cluster, "placement=SPREAD,timeout=30,retries=3")
    with opened(tmp_path, options, Mesh(pp=2)) as runner:
        check(runner.run({"x": batch(0)}), 0)
        cluster.remove_node(cluster.worker_nodes and next(iter(cluster.worker_nodes)), allow_graceful=False)
        check(runner.run({"x": batch(1)}), 1)
        with pytest.raises(WorkerError, match="the cluster has no room for 8 ranks"):
            opened(tmp_path / "large", executor(cluster, "start_timeout=2"), Mesh(pp=2, tp=4))
