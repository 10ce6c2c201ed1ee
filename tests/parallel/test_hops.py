"""Threads of a replica: who runs a stage, and that runs keep their order whoever does."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import pytest
from miaotui.compiler.errors import WorkerError
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.runtime.parallel.relay import Rank
from miaotui.runtime.parallel.share import ShareRunner
from miaotui.runtime.parallel.threads import QUICK, Seat
from miaotui.runtime.parallel.work import Travel
from support.parallel_runs import batch, check, opened


class Stage:
    """Stands for a rank: notes which run it did, and on which thread."""

    def __init__(self, least: float, most: float, seed: int = 0) -> None:
        self.share = nullcontext()
        self.seen: list[tuple[int, int]] = []
        self._bounds, self._random = (least, most), random.Random(seed)

    def handle(self, travel: Travel) -> None:
        self.seen.append((travel.number, threading.get_ident()))
        if seconds := self._random.uniform(*self._bounds):
            time.sleep(seconds)


def travelled(stages: list[Stage], count: int, together: int) -> list[int]:
    """Numbers of runs as they arrive behind ``stages``; so many are under way at once."""
    seats = [Seat(cast(Rank, stage)) for stage in stages]
    for seat, following in itertools.pairwise(seats):
        seat.next = following
    arrived: SimpleQueue[Any] = SimpleQueue()
    threads = [threading.Thread(target=seat.serve, args=(arrived.put,)) for seat in seats]
    for thread in threads:
        thread.start()
    found = []
    for number in range(count):
        seats[0].put(Travel(number, "main", 0, 0, {}, form=("main",)))
        if number >= together - 1:
            found.append(arrived.get().number)
    found += [arrived.get().number for _ in range(together - 1)]
    seats[0].inbox.put(None)
    for thread in threads:
        thread.join()
    assert seats[0].given == seats[0].done == count
    return found


@pytest.mark.parametrize("together", [1, 2, 5])
def test_runs_keep_their_order_at_every_stage(together: int) -> None:
    stages = [Stage(0, seconds, seed) for seed, seconds in enumerate((0, 4 * QUICK, 0, QUICK, 0))]
    assert travelled(stages, 200, together) == list(range(200))
    for stage in stages:
        assert [number for number, _ in stage.seen] == list(range(200))


def test_a_quick_stage_is_run_where_the_one_before_was() -> None:
    stages = [Stage(0, 0), Stage(0, 0)]
    travelled(stages, 100, 1)
    first = stages[0].seen[0][1]
    assert sum(thread == first for _, thread in stages[1].seen) > 80


def test_a_slow_stage_is_left_to_its_own_thread() -> None:
    stages = [Stage(0, 0), Stage(2 * QUICK, 3 * QUICK)]
    travelled(stages, 20, 2)
    assert all(thread != stages[0].seen[0][1] for _, thread in stages[1].seen)


Seen = list[tuple[str, int, str]]
"""What was run, in order: stage, number of the run, thread."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Notes what the ranks of real replicas do."""
    found: Seen = []
    handle = Rank.handle

    def noted(self: Rank, travel: Travel) -> None:
        if travel.command is None:
            found.append((self.share.place, travel.number, threading.current_thread().name))
        handle(self, travel)

    monkeypatch.setattr(Rank, "handle", noted)
    return found


def delayed(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[ShareRunner], float]) -> None:
    """Have each run of a share take longer."""
    run = ShareRunner.run

    def slow(self: ShareRunner, *given: Any) -> dict[str, np.ndarray]:
        time.sleep(seconds(self))
        return run(self, *given)

    monkeypatch.setattr(ShareRunner, "run", slow)


@pytest.fixture
def all_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was run before was quick, however busy this machine is."""
    monkeypatch.setattr("miaotui.runtime.parallel.threads.QUICK", 60.0)


@pytest.mark.usefixtures("all_quick")
def test_a_caller_runs_idle_stages_itself_from_the_second_run_of_a_form(tmp_path: Path, seen: Seen) -> None:
    caller = threading.current_thread().name
    with opened(tmp_path, "threads{micro_batches=1}") as runner:
        for rows in (5, 2, 3):
            for first in (True, False, False):
                del seen[:]
                runner.run({"x": batch(0, rows)})
                assert [thread == caller for _, _, thread in seen] == [not first] * 2


def test_a_caller_never_runs_what_was_slow(
    tmp_path: Path, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    delayed(monkeypatch, lambda share: 2 * QUICK if share.place == "stage 1 shard 0" else 0)
    with opened(tmp_path, "threads{micro_batches=1}") as runner:
        for _ in range(20):
            check(runner.run({"x": batch(0)}), 0)
    assert {thread for _, _, thread in seen} <= {f"replica 0 stage {stage} shard 0" for stage in range(2)}


@pytest.mark.usefixtures("all_quick")
def test_a_caller_never_runs_one_shard_of_several(tmp_path: Path, seen: Seen) -> None:
    with opened(tmp_path, "threads{micro_batches=1}", Mesh(pp=2, tp=2)) as runner:
        for _ in range(20):
            check(runner.run({"x": batch(0)}), 0)
    assert threading.current_thread().name not in {thread for _, _, thread in seen}


@pytest.mark.usefixtures("all_quick")
@pytest.mark.parametrize("mesh", [Mesh(pp=2), Mesh(dp=2, pp=2)], ids=str)
def test_eight_callers_get_their_own_and_runs_keep_their_order(
    tmp_path: Path, seen: Seen, mesh: Mesh
) -> None:
    def call(number: int) -> None:
        check(runner.run({"x": batch(number)}), number)

    with opened(tmp_path, "threads{micro_batches=1}", mesh) as runner, ThreadPoolExecutor(8) as callers:
        list(callers.map(call, range(400)))
    if mesh.dp == 1:
        first, second = ([run for place, run, _ in seen if place.startswith(f"stage {s}")] for s in (0, 1))
        assert first == second == sorted(first)
        assert len(first) == 400


@pytest.mark.usefixtures("all_quick")
def test_what_a_caller_runs_and_hangs_is_named_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = [False]
    delayed(monkeypatch, lambda share: 1.5 if hangs[0] and share.place == "stage 1 shard 0" else 0)
    with opened(tmp_path, "threads{timeout=0.4,retries=0,micro_batches=1}") as runner:
        check(runner.run({"x": batch(0)}), 0)
        hangs[0] = True
        with ThreadPoolExecutor(1) as callers:
            hung = callers.submit(runner.run, {"x": batch(0)})
            time.sleep(0.1)
            hangs[0] = False
            with pytest.raises(WorkerError, match="stage 1 shard 0: gave no answer in time"):
                runner.run({"x": batch(1)})
            check(runner.run({"x": batch(2)}), 2)
            assert not hung.done()
            check(hung.result(), 0)


@pytest.mark.usefixtures("all_quick")
def test_a_rank_is_not_closed_under_a_caller_that_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, slow = threading.Event(), [False]

    def seconds(share: ShareRunner) -> float:
        if slow[0] and share.place == "stage 0 shard 0":
            inside.set()
            return 0.3
        return 0

    delayed(monkeypatch, seconds)
    with ThreadPoolExecutor(1) as callers:
        with opened(tmp_path, "threads{micro_batches=1}") as runner:
            check(runner.run({"x": batch(0)}), 0)
            slow[0] = True
            answer = callers.submit(runner.run, {"x": batch(0)})
            assert inside.wait(10)
        assert not answer.done()
        check(answer.result(), 0)
