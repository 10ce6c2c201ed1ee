"""Which backend's code is kept: every attempt built and proved, the fastest measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ..compiler.draft import Draft
from ..compiler.errors import CompileError, UnsupportedError
from ..compiler.options import CompileOptions
from .budget import Settled
from .candidates import summary
from .context import unsupported, variant_name
from .decide import FINAL, Judge, Result
from .lower import Lowered, Recipe
from .never_slower import race
from .progress import Journal
from .proof import Evidence
from .workbench import Built, Workbench

WRITTEN = 16
"""Tokens that language models write after the prompt when two backends are compared."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A program lowered for one backend, which ``options`` name. ``settled``: what a budget chose for it."""

    options: CompileOptions
    recipe: Recipe
    lowered: Lowered
    settled: Settled | None = None

    @property
    def name(self) -> str:
        """Its variant's."""
        return variant_name(self.options)

    def refusal(self) -> str:
        """Why its backend can't build it, in a line; empty if it can."""
        return summary(unsupported(self.lowered.program, self.options))


@dataclass(slots=True)
class Choice:
    """Builds attempts into one draft. ``built``: programs that it wrote there, kept or not."""

    draft: Draft
    evidence: Evidence | None
    journal: Journal
    source: Built | None = None
    benches: list[Workbench] = field(default_factory=list)

    @property
    def built(self) -> int:
        """Programs that were written to the draft, kept or not."""
        return sum(bench.built for bench in self.benches)

    def best(self, attempts: Sequence[Attempt]) -> tuple[Attempt, Result]:
        """The attempt that is kept, with its evidence; the first of two wins where nothing can be measured.

        Raises: CompileError if none can be built, or none gives the source's outputs.
        """
        first, *others = attempts
        if not others:
            result, judge = self._built(first)
            return first, result if judge is None else judge.judged(result)
        try:
            if refusal := first.refusal():
                raise UnsupportedError(first.options.backend, refusal)
            result, judge = self._built(first)
            if judge is not None:
                with self.journal.stage("verify"):
                    result = judge.proved(result)
        except CompileError as error:
            self.journal.note(f"no {first.options.backend} code: {str(error).splitlines()[0]}")
            return self.best(others)
        if judge is None or result.proof is None or first.options.timing <= 0:
            return first, result
        return self._faster(first, result, judge, others[0])

    def _faster(
        self, first: Attempt, result: Result, judge: Judge, second: Attempt
    ) -> tuple[Attempt, Result]:
        rival, other = self._built(second)
        if other is None:
            return first, result
        with self.journal.stage("verify"):
            rival = other.proved(rival)
        with self.journal.stage("time"):
            inputs, threads = judge.evidence.cases[0].inputs, first.options.threads
            measured = race(result.best, rival.best, inputs, threads=threads, seconds=FINAL, written=WRITTEN)
            ratio = 1.0 if measured.speedup is None else measured.speedup.ratio
            self.journal.note(f"{first.name} is {ratio:.2f}× as fast as {second.name}")
            if ratio < 1:
                return second, other.proved(other.timed(rival))
            return first, judge.timed(result)

    def _built(self, attempt: Attempt) -> tuple[Result, Judge | None]:
        options = attempt.options
        bench = Workbench(self.draft, options.backend, options.target)
        self.benches.append(bench)
        with self.journal.stage("build"):
            if self.source is None and options.keeps_source:
                self.source = bench.source(attempt.recipe.source)
            result = Result(attempt.lowered, bench.optimized(attempt.lowered, attempt.name), self.source)
        if self.evidence is None:
            return result, None
        return result, Judge(bench, attempt.recipe, self.evidence, options, self.journal)


def moved(draft: Draft, attempt: Attempt, result: Result) -> Result:
    """The result written again into ``draft``, without what was dropped on the way."""
    options = attempt.options
    bench = Workbench(draft, options.backend, options.target)
    source = bench.source(attempt.recipe.source) if options.keeps_source else None
    return replace(result, source=source, best=bench.again(result.best, result.lowered, attempt.name))
