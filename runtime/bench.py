"""Benchmark of runners: latencies side by side, load and first call apart, memory, and the conditions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from ..compiler.jsonable import to_json
from ..compiler.options import Target
from ..compiler.reference import Array, Arrays
from .conditions import Conditions, available_memory, conditions, peak_rss
from .counters import Counters
from .metering import Usage, metered
from .tensors import fitted
from .timing import SETTLE, Latency, Speedup, Timings, interleave

_ROUNDS_ALONE = 6


class TimedRunner(Protocol):
    """What is timed: inputs are checked once, then run again and again."""

    load_seconds: float

    def check(self, inputs: Mapping[str, Any]) -> Arrays:
        """``inputs`` as arrays that fit. Raises: InputError listing every one that does not."""
        ...

    def run_arrays(self, arrays: Arrays) -> Arrays:
        """One call on checked inputs."""
        ...

    def close(self) -> None:
        """Free the session."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something to time: a name, how to open its runner, and bytes it needs when open (0: not known)."""

    name: str
    open: Callable[[], TimedRunner]
    size: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """One candidate's figures, times in seconds. ``speedup`` is against the last one, the baseline.

    ``usage``: what the device's counters say of a stretch of its runs; None if it was not metered.
    """

    name: str
    latency: Latency
    load: float
    first_call: float
    speedup: Speedup | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What a benchmark measured: candidates in order, the baseline last.

    ``inputs``: shape of every input. ``together``: whether all sessions were in memory at once.
    ``peak_rss``: greatest resident memory of the process, bytes. ``timings``: of every call.
    """

    candidates: tuple[Measured, ...]
    inputs: Mapping[str, tuple[int, ...]]
    conditions: Conditions
    together: bool
    peak_rss: int
    timings: Timings

    @property
    def latency(self) -> Latency:
        """The first candidate's."""
        return self.candidates[0].latency

    @property
    def speedup(self) -> Speedup | None:
        """The first candidate's against the baseline; None if it was timed alone."""
        return self.candidates[0].speedup

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``, without the single calls."""
        data: dict[str, Any] = to_json(self)
        del data["timings"]
        return data


def bench(
    candidates: Sequence[Candidate],
    inputs: Arrays,
    *,
    runs: int = 50,
    seconds: float | None = None,
    target: Target,
    threads: int | None = None,
    together: bool | None = None,
    settle: float = SETTLE,
    enough: Callable[[Timings], bool] = lambda timings: False,
    counters: Counters | None = None,
) -> BenchResult:
    """Time ``candidates`` on the same ``inputs``; the last is the baseline of the others' speedup.

    ``settle``: seconds of rest between candidates where there are several threads; 0 for sessions whose
    workers rest by themselves. ``enough`` may end a measurement whose sessions are open together.
    ``seconds`` bounds the time, but six rounds of calls are always made, or two of openings.
    ``together``: keep all sessions open and interleave single calls; else one session is in memory at a
    time and whole passes are interleaved. None: together if they fit in half of the free memory.
    ``counters``: of the device, to meter a second of each candidate's runs by, after they were timed.
    Raises: InputError if the inputs don't fit a candidate.
    """
    before = conditions(target, threads)
    if together is None:
        free = available_memory()
        together = free is None or 2 * sum(c.size for c in candidates) < free / 2
    measure = _together if together else _one_by_one
    pace = _Pace(runs, seconds, settle if before.threads > 1 else 0.0, enough, counters)
    opened, timings, usages = measure(candidates, inputs, pace)
    baseline = candidates[-1].name
    measured = tuple(
        Measured(
            c.name,
            timings.latency(c.name),
            *opened[c.name],
            speedup=timings.speedup(c.name, baseline) if c.name != baseline else None,
            usage=usages.get(c.name),
        )
        for c in candidates
    )
    shapes = {name: tuple(array.shape) for name, array in inputs.items()}
    return BenchResult(measured, shapes, before, together, peak_rss(), timings)


Opened = dict[str, tuple[float, float]]
Usages = dict[str, Usage]


@dataclass(frozen=True, slots=True)
class _Pace:
    """How often and how long; as the arguments of ``interleave``."""

    runs: int
    seconds: float | None
    settle: float
    enough: Callable[[Timings], bool]
    counters: Counters | None


def _together(
    candidates: Sequence[Candidate], inputs: Mapping[str, Array], pace: _Pace
) -> tuple[Opened, Timings, Usages]:
    opened: Opened = {}
    runners: dict[str, TimedRunner] = {}
    try:
        calls: dict[str, Callable[[], object]] = {}
        for candidate in candidates:
            runner = runners[candidate.name] = candidate.open()
            calls[candidate.name], opened[candidate.name] = _first_call(runner, inputs)
        timings = interleave(calls, pace.runs, seconds=pace.seconds, settle=pace.settle, enough=pace.enough)
        counters = pace.counters
        usages = {} if counters is None else {n: metered(call, counters) for n, call in calls.items()}
        return opened, timings, usages
    finally:
        for runner in runners.values():
            runner.close()


def _one_by_one(
    candidates: Sequence[Candidate], inputs: Mapping[str, Array], pace: _Pace
) -> tuple[Opened, Timings, Usages]:
    opened: Opened = {}
    usages: Usages = {}
    rounds: dict[str, list[tuple[float, ...]]] = {c.name: [] for c in candidates}
    share = None if pace.seconds is None else pace.seconds / (_ROUNDS_ALONE * len(candidates))
    end = math.inf if pace.seconds is None else time.perf_counter() + pace.seconds
    runs = -(-pace.runs // _ROUNDS_ALONE)
    for number in range(_ROUNDS_ALONE):
        if number >= 2 and time.perf_counter() > end:  # opening takes time that no share bounds
            break
        for candidate in candidates[:: -1 if number % 2 else 1]:
            with closing(candidate.open()) as runner:
                call, first = _first_call(runner, inputs)
                opened.setdefault(candidate.name, first)
                alone = interleave({"": call}, runs, seconds=share, settle=pace.settle)
                if pace.counters is not None and candidate.name not in usages:
                    usages[candidate.name] = metered(call, pace.counters)
            rounds[candidate.name].append(tuple(s for block in alone.rounds[""] for s in block))
    return opened, Timings({name: tuple(blocks) for name, blocks in rounds.items()}), usages


def _first_call(
    runner: TimedRunner, inputs: Mapping[str, Array]
) -> tuple[Callable[[], object], tuple[float, float]]:
    arrays = runner.check(fitted(inputs, getattr(runner, "inputs", ())))
    start = time.perf_counter()
    runner.run_arrays(arrays)
    return lambda: runner.run_arrays(arrays), (runner.load_seconds, time.perf_counter() - start)
