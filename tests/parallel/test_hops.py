"""Threads of a replica: who runs a stage, and that runs keep their order whoever does."""

from __future__ import annotations

import itertools
import random
import threading
import time
from contextlib import nullcontext
from queue import SimpleQueue
from typing import Any, cast

import pytest
from miaotui.runtime.parallel.relay import Rank
from miaotui.runtime.parallel.threads import QUICK, Seat
from miaotui.runtime.parallel.work import Travel


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
        seats[0].put(Travel(number, "main", 0, 0, {}))
        if number >= together - 1:
            found.append(arrived.get().number)
    found += [arrived.get().number for _ in range(together - 1)]
    for seat in seats:
        seat.inbox.put(None)
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
