"""The thread pool of the native kernels: barriers, growing scratch, idling."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from native.float_cases import Kernels


@pytest.mark.parametrize(
    ("threads", "runs", "rounds"), [(1, 50, 20), (2, 200, 50), (3, 100, 20), (8, 60, 10)]
)
def test_no_worker_passes_a_barrier_before_all_are_there(
    kernels: Kernels, threads: int, runs: int, rounds: int
) -> None:
    assert kernels.library.run_rounds(threads, runs, rounds) == 0


def test_many_pools_open_and_close(kernels: Kernels) -> None:
    before = len(list(Path("/proc/self/task").iterdir()))
    for _ in range(50):
        assert kernels.library.run_rounds(3, 1, 1) == 0
    assert len(list(Path("/proc/self/task").iterdir())) == before


def test_refuses_scratch_that_does_not_exist(kernels: Kernels) -> None:
    assert kernels.library.scratch_refused() == 1


def test_idle_workers_sleep(kernels: Kernels) -> None:
    pool = kernels.open_pool(4)
    try:
        time.sleep(0.02)
        start, wall = os.times(), time.perf_counter()
        time.sleep(0.3)
        used = sum(os.times()[:2]) - sum(start[:2])
        assert used < 0.5 * (time.perf_counter() - wall)
    finally:
        kernels.close_pool(pool)
