"""Workers that are killed or hang: what they were at is done again or fails by name, and others take over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from miaotui.compiler.artifact import record_file
from miaotui.compiler.errors import ArtifactError, CompileError, WorkerError
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.plan import PLAN
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.parallel.arena import shared_folder
from miaotui.runtime.parallel.options import ParallelOptions
from miaotui.runtime.parallel.processes import PREFIX
from miaotui.runtime.parallel.runner import ParallelModel
from support.parallel_runs import MAIN, batch, check, opened, pids
from support.plans import write_plan
from support.stateful_plans import DECODING, SIGNATURE, write_greedily, write_stateful_plan


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    assert psutil.wait_procs(left, 10)[1] == []
    assert list(shared_folder().glob(f"{PREFIX}{os.getpid()}-*")) == []


def test_a_killed_worker_loses_nothing_and_nothing_is_answered_twice(tmp_path: Path) -> None:
    with opened(tmp_path, "processes", Mesh(dp=2, pp=2)) as runner, ThreadPoolExecutor(3) as callers:
        first = pids(runner)
        answers = [callers.submit(runner.run, {"x": batch(number)}) for number in range(40)]
        answers[7].result()
        os.kill(first[1], signal.SIGKILL)
        for number, answer in enumerate(answers):
            check(answer.result(), number)
        check(runner.run({"x": batch(41)}), 41)
        assert not set(first) & set(pids(runner))


def test_a_hung_worker_is_named_within_the_timeout_and_replaced(tmp_path: Path) -> None:
    with opened(tmp_path, "processes{timeout=3,retries=0}") as runner:
        check(runner.run({"x": batch(0)}), 0)
        hung = pids(runner)[1]
        os.kill(hung, signal.SIGSTOP)
        with pytest.raises(WorkerError, match=rf"stage 1 shard 0 \(process {hung}\): gave no answer in time"):
            runner.run({"x": batch(1)})
        assert not psutil.pid_exists(hung)
        check(runner.run({"x": batch(2)}), 2)


def test_a_shard_that_dies_in_a_collective_fails_its_whole_group_once(tmp_path: Path) -> None:
    with opened(tmp_path, "processes", Mesh(tp=2, pp=2)) as runner:
        check(runner.run({"x": batch(0)}), 0)
        os.kill(pids(runner)[3], signal.SIGSTOP)
        os.kill(pids(runner)[3], signal.SIGKILL)
        check(runner.run({"x": batch(1)}), 1)


def test_a_session_whose_worker_died_is_written_again_from_its_tokens(tmp_path: Path) -> None:
    write_stateful_plan(tmp_path, Mesh(pp=2))
    options = ParallelOptions.parse("processes")
    with ParallelModel(tmp_path, SIGNATURE, "decode", DECODING, options=options).open(1) as runner:
        decoder = Decoder(runner, DECODING, rows=2)
        prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
        for row, prompt in enumerate(prompts):
            decoder.prefill(row, prompt)
        written: list[list[int]] = [[], []]
        for step in range(8):
            if step == 3:
                os.kill(pids(runner)[0], signal.SIGKILL)
            for row in range(2):
                written[row].append(int(decoder.tokens[row, 0]))
            decoder.step()
        assert written == [write_greedily(prompt, 8) for prompt in prompts]


def test_an_error_of_a_kernel_is_the_callers_and_ends_no_worker(tmp_path: Path) -> None:
    write_stateful_plan(tmp_path, Mesh(pp=2, tp=2))
    options = ParallelOptions.parse("processes")
    with ParallelModel(tmp_path, SIGNATURE, "decode", DECODING, options=options).open(1) as runner:
        before = pids(runner)
        decoder = Decoder(runner, DECODING)
        with pytest.raises(CompileError, match="indices element out of data bounds") as caught:
            decoder.prefill(0, [1000])
        assert not isinstance(caught.value, WorkerError)
        decoder.prefill(0, [1, 2, 3])
        assert int(decoder.tokens[0, 0]) == write_greedily([1, 2, 3], 1)[0]
        assert pids(runner) == before


def test_workers_end_with_their_caller_and_leave_no_memory(tmp_path: Path) -> None:
    write_plan(tmp_path)
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from support.parallel_runs import MAIN, pids\n"
        "from miaotui.runtime.parallel.options import ParallelOptions\n"
        "from miaotui.runtime.parallel.runner import ParallelModel\n"
        "model = ParallelModel(Path(sys.argv[1]), MAIN, options=ParallelOptions('processes'))\n"
        "print(*pids(model.open(1)), flush=True); time.sleep(60)"
    )
    tests = str(Path(__file__).parents[1])
    caller = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), tests], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    with caller.stdout as told:
        workers = [psutil.Process(int(pid)) for pid in told.readline().split()]
    assert len(workers) == 2
    caller.kill()
    caller.wait()
    assert psutil.wait_procs(workers, 30)[1] == []
    assert list(shared_folder().glob(f"{PREFIX}{caller.pid}-*")) == []


def test_a_hung_thread_fails_by_name_and_another_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from miaotui.runtime.parallel.share import ShareRunner

    run, hang = ShareRunner.run, [True]

    def slow(self: ShareRunner, *args: object) -> dict[str, np.ndarray]:
        if self.place == "stage 1 shard 0" and hang.pop(0):
            time.sleep(1.5)
        hang.append(False)
        return run(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ShareRunner, "run", slow)
    with opened(tmp_path, "threads{timeout=0.5,retries=0}") as runner:
        with pytest.raises(WorkerError, match="stage 1 shard 0: gave no answer in time"):
            runner.run({"x": batch(0, 1)})
        check(runner.run({"x": batch(1)}), 1)


def test_a_worker_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import miaotui.runtime.parallel.processes as module
    import miaotui.runtime.parallel.runner as face

    plan = write_plan(tmp_path)
    newer = replace(plan, version="9.9.9")
    (tmp_path / PLAN).write_text(newer.dumps())
    with pytest.raises(ArtifactError, match=r"written by miaotui 9\.9\.9, this worker is"):
        ParallelModel(tmp_path, MAIN).open(1)
    for room in (module, face):
        monkeypatch.setattr(room, "own_version", lambda: "9.9.9")
    with pytest.raises(ArtifactError, match=r"stage 0 shard 0 .* this is 9\.9\.9"):
        ParallelModel(tmp_path, MAIN, options=ParallelOptions("processes")).open(1)


def test_files_that_the_plan_does_not_mean_are_named(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    name = plan.share(1, 0).weights
    assert name is not None
    (tmp_path / name).write_bytes(b"short")
    assert record_file(tmp_path / name) != plan.files[name]
    with pytest.raises(ArtifactError, match="has 5 bytes"):
        ParallelModel(tmp_path, MAIN).open(1)
