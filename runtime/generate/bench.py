"""Benchmark of generation: prompts of p tokens, n new ones, b rows, r times, candidates side by side."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compiler.errors import OptionError, Problem
from ...compiler.jsonable import to_json
from ...compiler.options import Target
from ..conditions import Conditions, conditions, peak_rss
from ..counters import Counters, counters_of
from ..metering import Meter, Usage
from ..timing import SETTLE, Speedup
from ..timing import Timings as Rounds
from .generator import Generator
from .protocol import TokenDecoder

WARM_UP = 4
"""Steps before anything is timed, after one whole prompt."""


@dataclass(frozen=True, slots=True)
class Workload:
    """``prompt`` tokens in, ``new`` tokens out, ``batch`` rows at once."""

    prompt: int
    new: int
    batch: int = 1


@dataclass(frozen=True, slots=True)
class GenerationFigures:
    """One candidate at one workload; medians over the repeats, times in seconds.

    ``ttft``: until every row has its first token. ``prefill_rate``: prompt tokens per second of all rows;
    ``decode_rate``: new tokens per second of all rows, after the first. ``tpot_p50``, ``tpot_p99``: time per
    output token over all steps. ``prefill_speedup``, ``decode_speedup``: against the last candidate.
    ``usage``: what the device's counters say of all steps; its ``per_run`` is joules per new token.
    """

    name: str
    workload: Workload
    repeats: int
    ttft: float
    prefill_rate: float
    decode_rate: float | None
    tpot_p50: float | None
    tpot_p99: float | None
    prefill_speedup: Speedup | None = None
    decode_speedup: Speedup | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class GenerationBench:
    """What was measured, by workload and candidate.

    ``load``: seconds to open each candidate's session. ``peak_rss``: greatest resident memory of the process,
    bytes, all candidates in it.
    """

    figures: tuple[GenerationFigures, ...]
    load: Mapping[str, float]
    conditions: Conditions
    peak_rss: int

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``."""
        data: dict[str, Any] = to_json(self)
        return data


def workloads(prompt: Sequence[int], new: Sequence[int], batch: Sequence[int]) -> list[Workload]:
    """Every combination. Raises: OptionError for sizes below 1."""
    named = {"prompt": prompt, "new": new, "batch": batch}
    problems = [
        Problem(k, f"is {size}", "give 1 or more") for k, v in named.items() for size in v if size < 1
    ]
    if problems:
        raise OptionError.of(problems)
    return list(itertools.starmap(Workload, itertools.product(prompt, new, batch)))


def bench_generation(
    candidates: Mapping[str, Generator],
    asked: Sequence[Workload],
    *,
    repeats: int,
    target: Target | None = None,
    threads: int | None = None,
    counters: Counters | None = None,
) -> GenerationBench:
    """Time ``candidates`` on prompts of random tokens, the last is the baseline of the others.

    Each repeat has other tokens, the first one above all: nothing that was kept can help. All candidates
    take turns within a repeat. ``counters``: of the device; None takes what this machine has for ``target``.
    Raises: OptionError for workloads that don't fit a candidate's context.
    """
    target = Target() if target is None else target
    before, counters = conditions(target, threads), counters or counters_of(target)
    if problems := list(_misfits(candidates, asked)):
        raise OptionError.of(problems)
    load = {name: generator.runner.load_seconds for name, generator in candidates.items()}
    rest = SETTLE if before.threads > 1 else 0.0
    figures = [
        made for workload in asked for made in _measured(candidates, workload, repeats, rest, counters)
    ]
    return GenerationBench(tuple(figures), load, before, peak_rss())


def _misfits(candidates: Mapping[str, Generator], asked: Sequence[Workload]) -> Iterator[Problem]:
    for (name, generator), workload in itertools.product(candidates.items(), asked):
        context, length = generator.decoding.context, workload.prompt + workload.new
        if generator.decoding.encoder is None and context is not None and length > context:
            fact = f"{workload.prompt} + {workload.new} tokens are more than its context of {context}"
            yield Problem(name, fact, "ask for fewer")


def _measured(
    candidates: Mapping[str, Generator], workload: Workload, repeats: int, rest: float, counters: Counters
) -> Iterator[GenerationFigures]:
    runs = {name: _Run(generator, workload, counters) for name, generator in candidates.items()}
    random = np.random.default_rng(0)
    vocabulary = min(generator.decoding.vocabulary for generator in candidates.values())
    enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(-1, repeats):
            prompts = random.integers(0, vocabulary, (workload.batch, workload.prompt))
            prompts[:, 0] = (number + 1 + np.arange(workload.batch) * (repeats + 1)) % vocabulary
            for name in list(runs)[:: -1 if number % 2 else 1]:
                time.sleep(rest)
                runs[name].once(prompts.tolist(), warm_up=number < 0)
    finally:
        if enabled:
            gc.enable()
    baseline = list(runs)[-1]
    for name, run in runs.items():
        yield run.figures(name, None if name == baseline else runs[baseline])


class _Run:
    """One candidate at one workload: its decoder, and the seconds of every repeat."""

    def __init__(self, generator: Generator, workload: Workload, counters: Counters) -> None:
        self._generator, self._workload = generator, workload
        self._meter = Meter(counters)
        self._decoder: TokenDecoder | None = None
        self._prefills: list[float] = []
        self._steps: list[list[float]] = []

    def once(self, prompts: Sequence[Sequence[int]], *, warm_up: bool) -> None:
        """Take ``prompts`` in and write the new tokens."""
        count = self._workload.new - 1
        start = time.perf_counter()
        self._decoder = decoder = self._generator.begin(prompts, self._workload.new, self._decoder)
        seconds = [time.perf_counter()]
        with nullcontext() if warm_up or not count else self._meter:
            began = time.perf_counter()
            for _ in range(min(count, WARM_UP) if warm_up else count):
                decoder.step()
                decoder.tokens.tolist()
                seconds.append(time.perf_counter())
        if not warm_up:
            self._prefills.append(seconds[0] - start)
            self._steps.append(
                [after - before for before, after in itertools.pairwise([began, *seconds[1:]])]
            )

    def figures(self, name: str, baseline: _Run | None) -> GenerationFigures:
        """Medians, and the speedup against ``baseline``."""
        steps, w = list(itertools.chain.from_iterable(self._steps)), self._workload
        decodes = self._decodes()
        return GenerationFigures(
            name=name,
            workload=w,
            repeats=len(self._prefills),
            ttft=statistics.median(self._prefills),
            prefill_rate=w.batch * w.prompt / statistics.median(self._prefills),
            decode_rate=w.batch * (w.new - 1) / statistics.median(decodes) if steps else None,
            tpot_p50=float(np.quantile(steps, 0.5)) if steps else None,
            tpot_p99=float(np.quantile(steps, 0.99)) if steps else None,
            prefill_speedup=None if baseline is None else _speedup(self._prefills, baseline._prefills),
            decode_speedup=_speedup(decodes, baseline._decodes()) if steps and baseline else None,
            usage=self._meter.usage(w.batch * len(steps)) if steps else None,
        )

    def _decodes(self) -> list[float]:
        return [sum(steps) for steps in self._steps]


def _speedup(seconds: Sequence[float], baseline: Sequence[float]) -> Speedup:
    rounds = Rounds({"": tuple((s,) for s in seconds), "baseline": tuple((s,) for s in baseline)})
    return rounds.speedup("", "baseline")
