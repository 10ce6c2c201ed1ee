"""Never slower: each optional pass that fired is left out in turn; one that costs time is reverted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from ..compiler.errors import InternalError
from ..compiler.reference import Arrays
from ..passes.base import Pass
from ..passes.cleanup import CLEANUP
from ..runtime.bench import BenchResult, Candidate, TimedRunner, bench
from ..runtime.tensors import fitted
from ..runtime.timing import Speedup, Timings
from .lower import Lowered, Recipe
from .workbench import Built, Workbench

NOISE = 0.98
"""A pass is reverted if its speedup is, with 95 % confidence, below this."""

GAIN = 1 / NOISE
"""A pass that is off is taken if its speedup is, with 95 % confidence, above this."""

TRIAL = 0.8
"""Most seconds spent on timing one pass; a clear case takes six rounds."""
EXACT = 0.03
"""Width of the confidence interval, as a share of the ratio, at which the last comparison ends."""

PROMPT, WRITTEN = 32, 4
"""Tokens of the prompt, and tokens written after it, when a pass is timed in a language model."""

TOGETHER = 256 << 20
"""Bytes of weights up to which both sessions are in memory at once; each session may hold a packed copy."""


def race(
    first: Built,
    second: Built,
    inputs: Arrays,
    *,
    threads: int | None,
    seconds: float,
    written: int = 0,
) -> BenchResult:
    """Time ``first`` against ``second``, the baseline, until it is exact or about ``seconds`` are over.

    A program with state is timed at what it is for, the next token of a prompt, and ``written`` more.
    """
    return contest(
        {b.name: b for b in (first, second)}, inputs, threads=threads, seconds=seconds, written=written
    )


def contest(
    rivals: Mapping[str, Built], inputs: Arrays, *, threads: int | None, seconds: float, written: int = 0
) -> BenchResult:
    """``race`` of any number: until each is exact against the last one, the baseline, or far behind."""
    *others, baseline = rivals

    def is_exact(timings: Timings) -> bool:
        gains = [timings.speedup(name, baseline) for name in others]
        best = max(1.0, *(gain.low for gain in gains))
        return all(g.high - g.low < EXACT * g.ratio or g.high < best / 2 for g in gains)

    first, *rest = rivals.values()
    if first.decoding is not None and first.decoding.context is not None:
        written = min(written, first.decoding.context - inputs[first.decoding.tokens].shape[1])
    return bench(
        [_candidate(built, threads, written=written, name=name) for name, built in rivals.items()],
        inputs,
        runs=30,
        seconds=seconds,
        enough=is_exact,
        target=first.model.target,
        threads=threads,
        together=_fit_together(first, *rest),
    )


def first_calls(built: Built, inputs: Arrays, *, threads: int | None) -> float:
    """Seconds of the faster one of two calls (of a token, where there is state): it tells the hopeless."""
    candidate = _candidate(built, threads)
    with closing(candidate.open()) as runner:
        arrays = runner.check(fitted(inputs, getattr(runner, "inputs", ())))
        runner.run_arrays(arrays)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            runner.run_arrays(arrays)
            times.append(time.perf_counter() - start)
        return min(times)


def trial(built: Built, rival: Built, inputs: Arrays, *, threads: int | None, line: float = NOISE) -> Speedup:
    """How much faster ``built`` is than ``rival``, as soon as it is clear on which side of ``line``.

    Worker threads rest between runs, so neither waits for the other's to stop spinning. Programs with state
    read ``PROMPT`` tokens and write ``WRITTEN``.
    """

    def is_clear(timings: Timings) -> bool:
        gain = timings.speedup(built.name, rival.name)
        return gain.low > line or gain.high < line

    if built.decoding is not None:
        tokens = built.decoding.tokens
        inputs = {**inputs, tokens: inputs[tokens][:, :PROMPT]}
    result = bench(
        [_candidate(b, threads, resting=True, written=WRITTEN) for b in (built, rival)],
        inputs,
        runs=30,
        seconds=TRIAL,
        target=built.model.target,
        threads=threads,
        together=_fit_together(built, rival),
        settle=0.0,
        enough=is_clear,
    )
    if result.speedup is None:
        raise InternalError("a race of two gave no speedup")
    return result.speedup


def _candidate(
    built: Built, threads: int | None, *, resting: bool = False, written: int = 0, name: str = ""
) -> Candidate:
    def opened() -> TimedRunner:
        if built.decoding is None:
            return built.open(threads, resting=resting)
        return built.open_stepwise(threads, resting=resting, steps=written)

    return Candidate(name or built.name, opened, built.weights)


def _fit_together(*rivals: Built) -> bool:
    return max(built.weights for built in rivals) <= TOGETHER


_FREE = frozenset(step.name for step in CLEANUP) | {"derive-cache"}
"""Not timed: cleanup only takes work away, and a cache is another program."""


@dataclass(frozen=True, slots=True)
class Trial:
    """How much faster one pass makes the program; below 1 if it costs time."""

    name: str
    gain: Speedup

    @property
    def loses(self) -> bool:
        """Whether the pass costs time beyond the noise."""
        return self.gain.verdict == "slower" and self.gain.high < NOISE

    @property
    def pays(self) -> bool:
        """Whether a pass that is off saves time beyond the noise."""
        return self.gain.verdict == "faster" and self.gain.low > GAIN


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was kept: the program and its build, passes left out, what was tried and what was not."""

    lowered: Lowered
    built: Built
    without: frozenset[str]
    trials: tuple[Trial, ...]
    untried: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wider:
    """A recipe with the passes added that paid, what it makes, and what was tried."""

    recipe: Recipe
    lowered: Lowered
    built: Built
    trials: tuple[Trial, ...] = ()


def add_what_pays(
    recipe: Recipe,
    workbench: Workbench,
    start: tuple[Lowered, Built],
    inputs: Arrays,
    *,
    offers: Sequence[Pass],
    without: frozenset[str],
    threads: int | None,
) -> Wider:
    """Try the passes of ``offers`` that fire behind ``recipe``; those that save time beyond noise stay."""
    found = Wider(recipe, *start)
    for step in offers:
        longer = replace(found.recipe, pipeline=(*found.recipe.pipeline, step))
        lowered = longer.lower(without)
        if step.name not in lowered.fired():
            continue
        built = workbench.optimized(lowered, f"with-{step.name}")
        tried = Trial(step.name, trial(built, found.built, inputs, threads=threads, line=GAIN))
        kept = (longer, lowered, built) if tried.pays else (found.recipe, found.lowered, found.built)
        found = Wider(*kept, (*found.trials, tried))
    return found


def keep_what_pays(
    recipe: Recipe,
    workbench: Workbench,
    start: tuple[Lowered, Built],
    inputs: Arrays,
    *,
    without: frozenset[str],
    threads: int | None,
    seconds: float | None,
    only: frozenset[str] | None = None,
) -> Verdict:
    """Try every optional pass that fired, the last ones first, within ``seconds`` (None: no bound).

    ``only``: the passes to try, if not all are.
    The last passes lower into fused kernels: they gain most and are the likeliest to lose. Models too large
    for two sessions are tried only without a bound: opening them again and again leaves no time for rounds.
    """
    lowered, built = start
    deadline = None if seconds is None else time.monotonic() + seconds
    trials: list[Trial] = []
    candidates = [name for name in reversed(lowered.fired()) if name not in _FREE]
    if only is not None:
        candidates = [name for name in candidates if name in only]
    if seconds is not None and built.weights > TOGETHER:
        return Verdict(lowered, built, without, (), tuple(candidates))
    for index, name in enumerate(candidates):
        if deadline is not None and time.monotonic() > deadline:
            return Verdict(lowered, built, without, tuple(trials), tuple(candidates[index:]))
        other = recipe.lower(without | {name})
        rival = workbench.optimized(other, f"without-{name}")
        if rival.decoding is None and built.decoding is not None:
            continue  # the cache stands on this pass: without it there is another program to time
        if all(rival.models[entry].code() == model.code() for entry, model in built.models.items()):
            continue
        tried = Trial(name, trial(built, rival, inputs, threads=threads))
        trials.append(tried)
        if tried.loses:
            lowered, built, without = other, rival, without | {name}
    return Verdict(lowered, built, without, tuple(trials), ())
