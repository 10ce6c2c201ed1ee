"""Times functions interleaved in one process, and says whether one is faster than another."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Verdict: TypeAlias = Literal["faster", "slower", "inconclusive"]

SETTLE = 0.04
"""Seconds of rest before each candidate that has several threads: ONNX Runtime's workers spin that long."""

_BLOCK = 0.005  # seconds
_FEWEST = 6  # rounds: the sign test says nothing with less
_NEGLIGIBLE = 0.01  # of the logarithm of a ratio


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds per call."""

    runs: int
    median: float
    p90: float
    p99: float
    mean: float
    std: float
    minimum: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Statistics of ``seconds``, one number a call."""
        median, p90, p99 = (float(q) for q in np.quantile(seconds, [0.5, 0.9, 0.99]))
        mean = statistics.fmean(seconds)
        return cls(len(seconds), median, p90, p99, mean, float(np.std(seconds)), min(seconds))


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster than the baseline, with the 95 % confidence interval."""

    ratio: float
    low: float
    high: float
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.ratio:.3f}x [{self.low:.3f}, {self.high:.3f}] {self.verdict}"


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of every call, by candidate and round. In a round all candidates ran side by side."""

    rounds: Mapping[str, tuple[tuple[float, ...], ...]]

    def latency(self, name: str) -> Latency:
        """Statistics of one candidate over all rounds."""
        return Latency.of([seconds for block in self.rounds[name] for seconds in block])

    def speedup(self, name: str, baseline: str) -> Speedup:
        """How many times faster ``name`` is than ``baseline``: median over rounds of their best calls' ratio.

        Drift of the machine cancels out within a round, and the best call of a block is the one that other
        processes disturbed least. The interval is the sign test's, which assumes nothing about the noise.
        ``faster`` and ``slower`` are said only when it excludes 1 and the difference is worth a word (1 %).
        """
        pairs = zip(self.rounds[baseline], self.rounds[name], strict=True)
        logs = sorted(math.log(min(b) / min(c)) for b, c in pairs)
        skipped = _outside(len(logs))
        low, middle, high = logs[skipped], statistics.median(logs), logs[-1 - skipped]
        verdict: Verdict = "inconclusive"
        if len(logs) >= _FEWEST and (low > 0 or high < 0) and abs(middle) > _NEGLIGIBLE:
            verdict = "faster" if low > 0 else "slower"
        return Speedup(math.exp(middle), math.exp(low), math.exp(high), verdict)


def _outside(count: int) -> int:
    """How many of ``count`` sorted values lie below the median's 95 % interval: a binomial quantile."""
    skipped, tail = 0, 1 / 2**count
    while tail + math.comb(count, skipped + 1) / 2**count <= 0.025:
        skipped += 1
        tail += math.comb(count, skipped) / 2**count
    return skipped


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    runs: int = 50,
    *,
    seconds: float | None = None,
    settle: float = 0.0,
    enough: Callable[[Timings], bool] = lambda timings: False,
) -> Timings:
    """Time every candidate ``runs`` times or more, in rounds of short blocks whose order alternates.

    ``seconds`` bounds the whole measurement, warm-up included, but six rounds are always made; after them
    ``enough`` may end it. ``settle``: seconds of rest before each block. The garbage collector is off
    meanwhile.
    """
    end = math.inf if seconds is None else time.perf_counter() + seconds
    limit = 5.0 if seconds is None else seconds / (4 * max(1, len(candidates)))
    measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in candidates}
    with _no_collection():
        slowest = max((warm_up(run, limit) for run in candidates.values()), default=0.0)
        block = _block_size(slowest, runs, settle)
        for number in range(max(_FEWEST, math.ceil(runs / block))):
            if number >= _FEWEST and (time.perf_counter() > end or enough(_timings(measured))):
                break
            for name in list(candidates)[:: -1 if number % 2 else 1]:
                time.sleep(settle)
                measured[name].append(_block(candidates[name], block))
    return _timings(measured)


def _timings(measured: Mapping[str, Sequence[tuple[float, ...]]]) -> Timings:
    return Timings({name: tuple(blocks) for name, blocks in measured.items()})


def warm_up(run: Callable[[], object], limit: float = 5.0) -> float:
    """Call ``run`` until it gets no faster, at most 30 times or ``limit`` seconds; its typical seconds."""
    seconds: list[float] = []
    end = time.perf_counter() + limit
    while len(seconds) < 30:
        seconds.append(_timed(run))
        if len(seconds) >= 6 and min(seconds[-3:]) > 0.97 * min(seconds[:-3]):
            break
        if len(seconds) >= 2 and time.perf_counter() > end:
            break
    return statistics.median(seconds[-3:])


def _block_size(slowest: float, runs: int, settle: float) -> int:
    """Calls of one candidate in a row: enough to find warm caches, few enough for many rounds."""
    if slowest > 4 * _BLOCK:
        return 1
    size = min(20, math.ceil(_BLOCK / max(slowest, 1e-7)))
    return max(size, math.ceil(runs / 20)) if settle else max(1, size)


def _block(run: Callable[[], object], calls: int) -> tuple[float, ...]:
    if calls > 1:
        run()
    return tuple(_timed(run) for _ in range(calls))


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
