"""What approximating passes cost and gain: the program before and after each, built, proved and timed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..compiler.draft import Draft
from ..compiler.errors import CompileError
from ..passes.base import Pass
from ..passes.lowering.native import NATIVE_FP16
from .choice import Attempt
from .decide import BASELINE, Judge, Result
from .lower import Lowered
from .never_slower import TRIAL, race
from .progress import Journal
from .proof import Evidence, prove
from .workbench import Built, Workbench, tensor_bytes

MOST = 4
"""Prefixes of the pipeline that are built and measured, at most; without a time limit (-O3) all are."""

_ROOMS = ("sparsity", "lowrank", "precision")
_NARROWING = frozenset(step.name for step in NATIVE_FP16)


def is_approximating(step: Pass) -> bool:
    """Whether a program no longer gives what it gave after the pass."""
    room = type(step).__module__.partition(".passes.")[2].partition(".")[0]
    return room in _ROOMS or step.name in _NARROWING


@dataclass(frozen=True, slots=True)
class Prefix:
    """The program with its first ``count`` approximating passes, all others as in the result.

    ``time``: of a call, as a multiple of the result's; ``error``: of the proof's first case, by its metric.
    """

    count: int
    time: float
    error: float


@dataclass(frozen=True, slots=True)
class Prefixes:
    """``names``: the approximating passes that fired, in order; ``measured``: the result is the last.

    ``why`` says why others were not measured.
    """

    names: tuple[str, ...] = ()
    measured: tuple[Prefix, ...] = ()
    why: str = ""

    def step(self, name: str) -> tuple[Prefix, Prefix] | None:
        """The two around the pass ``name``, nearest before and just after it; None if it has no such."""
        count = self.names.index(name) + 1
        for old, new in pairwise(self.measured):
            if new.count == count:
                return old, new
        return None

    def told_with(self, name: str) -> str:
        """The later pass in whose figures those of ``name`` are; itself, or empty if in none."""
        place = self.names.index(name)
        return next((later for later in self.names[place:] if self.step(later) is not None), "")


def approximating(lowered: Lowered) -> tuple[str, ...]:
    """Names of the approximating passes that changed something, in order, each once."""
    changed = (s.step for s in lowered.steps if s.result.changed)
    return tuple(dict.fromkeys(step.name for step in changed if is_approximating(step)))


def measured_prefixes(
    attempt: Attempt, result: Result, evidence: Evidence | None, journal: Journal
) -> Prefixes:
    """Build, prove and time the program before each approximating pass, as long as ``--timing`` allows.

    One at least is measured unless timing is off; the last to begin may end later.
    """
    options, names = attempt.options, approximating(result.lowered)
    if not names:
        return Prefixes()
    if evidence is None or result.proof is None or options.timing <= 0:
        return Prefixes(names, why="--timing is 0" if options.timing <= 0 else "not run here")
    if (size := tensor_bytes(attempt.recipe.source)) > BASELINE:
        return Prefixes(names, why=f"the program before them takes {size / 1e9:.1f} GB")
    with tempfile.TemporaryDirectory() as folder, Draft(Path(folder, "prefixes")) as draft:
        bench = Workbench(draft, options.backend, options.target)
        judge = Judge(bench, attempt.recipe, evidence, options, journal)
        with journal.stage("waterfall"):
            return _prefixes(judge, result, names)


def _prefixes(judge: Judge, result: Result, names: tuple[str, ...]) -> Prefixes:
    options = judge.options
    deadline = time.monotonic() + options.timing
    first = Evidence(judge.evidence.reference, judge.evidence.cases[:1])
    found: list[Prefix] = []
    why = ""
    for count in range(len(names)):
        if options.opt < 3 and (count == MOST or (count and time.monotonic() > deadline)):
            why = f"within {options.timing:g} s (-O3 takes longer)"
            break
        try:
            found.append(_measured(judge, result, names, count, first))
        except CompileError as error:
            why = f"no code without {names[count]}: {str(error).splitlines()[0]}"
    if found:
        found.append(Prefix(len(names), 1.0, _error(judge, result.best, first)))
    return Prefixes(names, tuple(found), why)


def _measured(judge: Judge, result: Result, names: Sequence[str], count: int, first: Evidence) -> Prefix:
    options = judge.options
    # What did not fire in the result is left out too: it might, in place of a pass that is left out.
    others = {step.name for step in judge.recipe.pipeline if is_approximating(step)} - {*names[:count]}
    lowered = judge.recipe.lower(frozenset(result.reverted) | others)
    built = judge.bench.optimized(lowered, f"prefix-{count}")
    error = _error(judge, built, first)
    timed = race(built, result.best, first.cases[0].inputs, threads=options.threads, seconds=TRIAL)
    judge.bench.draft.discard_variant(f"prefix-{count}")
    return Prefix(count, 1.0 if timed.speedup is None else 1 / timed.speedup.ratio, error)


def _error(judge: Judge, built: Built, first: Evidence) -> float:
    worst = prove(built, first, judge.limit(built), judge.options.threads).worst
    return 0.0 if worst is None else worst.scaled
