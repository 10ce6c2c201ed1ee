"""Which backend's code is kept: every attempt built and proved, the fastest measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..compiler.codegen.tvm.backend import untuned
from ..compiler.draft import Draft
from ..compiler.errors import CompileError, ToolError, UnsupportedError
from ..compiler.options import CompileOptions
from ..compiler.reference import Arrays
from .budget import Settled
from .candidates import summary
from .context import check_session, unsupported, variant_name
from .decide import FINAL, Judge, Result
from .decision import Decision, Outcome, decided
from .lower import Lowered, Recipe
from .never_slower import contest, first_calls
from .progress import Journal
from .proof import Evidence
from .workbench import Built, Workbench

WRITTEN = 16
"""Tokens that language models write after the prompt when backends are compared."""

HOPELESS = 4.0
"""Times as long as the fastest one's calls from which on a candidate is not timed any further."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A program lowered for one backend, which ``options`` name. ``settled``: what a budget chose for it."""

    options: CompileOptions
    recipe: Recipe
    lowered: Lowered
    settled: Settled | None = None

    @property
    def backend(self) -> str:
        """Its backend's name."""
        return self.options.backend

    @property
    def name(self) -> str:
        """Its variant's."""
        return variant_name(self.options)

    def refusal(self) -> str:
        """Why its backend can't build it, in a line; empty if it can."""
        return summary(unsupported(self.lowered.program, self.options))


@dataclass(slots=True)
class Choice:
    """Builds attempts into one draft. ``left_out``: backends that are not tried, for the report.

    ``cached``: the decision of an earlier compile, if that is why there is one attempt.
    """

    draft: Draft
    evidence: Evidence | None
    journal: Journal
    left_out: tuple[Outcome, ...] = ()
    cached: Decision | None = None
    source: Built | None = None
    benches: list[Workbench] = field(default_factory=list)

    @property
    def built(self) -> int:
        """Programs that were written to the draft, kept or not."""
        return sum(bench.built for bench in self.benches)

    def best(self, attempts: Sequence[Attempt]) -> tuple[Attempt, Result]:
        """The attempt that is kept, with its evidence; the first that works where nothing can be measured.

        Raises: CompileError if none can be built, or none gives the source's outputs.
        """
        if len(attempts) == 1:
            (attempt,) = attempts
            result, judge = self._built(attempt)
            result = result if judge is None else judge.judged(result)
            alone = (Outcome(attempt.backend, "kept", "the only one to try"),) if self.left_out else ()
            decision = self.cached or (Decision((*alone, *self.left_out)) if alone else None)
            return attempt, replace(result, decision=decision)
        ready, failed = self._ready(attempts)
        outcomes = self._outcomes(ready)
        kept = next(entry for entry in ready if entry.attempt.backend == outcomes[0].backend)
        decision = Decision((*outcomes, *failed, *self.left_out))
        result = kept.result if kept.judge is None else kept.judge.finished(kept.result)
        return kept.attempt, replace(result, decision=decision)

    def _ready(self, attempts: Sequence[Attempt]) -> tuple[list[Ready], list[Outcome]]:
        """Those that are built and proved, and what became of the others.

        Only the first that works, where none can be timed. Raises: CompileError if none is left.
        """
        ready: list[Ready] = []
        failed: list[Outcome] = []
        errors: dict[str, CompileError] = {}
        for attempt in attempts:
            if ready and not ready[0].can_be_timed:
                failed.append(Outcome(attempt.backend, "left out", "nothing is timed"))
                continue
            try:
                entry = self._proved(attempt)
                if ready and not entry.can_be_timed:
                    raise ToolError(attempt.backend, "can't be run here")
                ready.append(entry)
            except CompileError as error:
                errors[attempt.backend] = error
                told = str(error).splitlines()[0]
                failed.append(Outcome(attempt.backend, "failed", told))
                self.journal.note(f"no {attempt.backend} code: {told}")
        if not ready:
            raise errors.get("ort", next(iter(errors.values())))
        return ready, failed

    def _proved(self, attempt: Attempt) -> Ready:
        if refusal := attempt.refusal():
            raise UnsupportedError(attempt.backend, refusal)
        result, judge = self._built(attempt)
        if judge is not None:
            with self.journal.stage("verify"):
                result = judge.proved(result)
            if result.proof is not None:
                check_session(result.best, attempt.options, self.journal)
        return Ready(attempt, result, judge)

    def _outcomes(self, ready: Sequence[Ready]) -> tuple[Outcome, ...]:
        """The one that is kept first, then the others."""
        if len(ready) == 1:
            return (Outcome(ready[0].attempt.backend, "kept", "the only one that works"),)
        assert self.evidence is not None
        inputs, threads = self.evidence.cases[0].inputs, ready[0].attempt.options.threads
        with self.journal.stage("time"):
            rivals = {entry.attempt.backend: entry.result.best for entry in ready}
            rough = _rough(rivals, inputs, threads)
            hopeless = {outcome.backend for outcome in rough if outcome.state == "slower"}
            rivals = {name: built for name, built in rivals.items() if name not in hopeless}
            if len(rivals) == 1:
                timed = tuple(outcome for outcome in rough if outcome.state == "kept")
            else:
                seconds = FINAL * len(rivals) / 2
                measured = contest(rivals, inputs, threads=threads, seconds=seconds, written=WRITTEN)
                timed = decided(measured.timings, list(rivals))
        kept = next(outcome for outcome in timed if outcome.state == "kept")
        for other in timed:
            if other.ratio is not None and other is not kept:
                self.journal.note(f"{kept.backend} is {1 / other.ratio:.2f}× as fast as {other.backend}")
        others = [outcome for outcome in timed if outcome is not kept]
        return (kept, *others, *(outcome for outcome in rough if outcome.backend in hopeless))

    def _built(self, attempt: Attempt) -> tuple[Result, Judge | None]:
        options = attempt.options
        bench = Workbench(self.draft, options.backend, options.target)
        self.benches.append(bench)
        with self.journal.stage("build"):
            if self.source is None and options.keeps_source:
                self.source = bench.source(attempt.recipe.source)
            result = Result(attempt.lowered, bench.optimized(attempt.lowered, attempt.name), self.source)
        for name, why in untuned(result.best.variant.settings).items():
            self.journal.note(f"kernel {name} stays untuned: {why}")
        if self.evidence is None:
            return result, None
        return result, Judge(bench, attempt.recipe, self.evidence, options, self.journal)


@dataclass(frozen=True, slots=True)
class Ready:
    """An attempt that is built, and proved where it runs here."""

    attempt: Attempt
    result: Result
    judge: Judge | None

    @property
    def can_be_timed(self) -> bool:
        """Whether it runs here and timing is on."""
        return self.judge is not None and self.result.proof is not None and self.attempt.options.timing > 0


def _rough(rivals: Mapping[str, Built], inputs: Arrays, threads: int | None) -> list[Outcome]:
    """By first calls: the fastest, ``kept``, and those far behind it, which no one should wait for.

    Nothing where TVM's code takes no part: that of the others is never so slow.
    """
    if not any("tvm" in name for name in rivals):
        return []
    calls = {name: first_calls(built, inputs, threads=threads) for name, built in rivals.items()}
    best = min(calls, key=lambda name: calls[name])
    found = [Outcome(best, "kept", "far ahead of all others", calls[best], 1.0)]
    why = f"its first calls took more than {HOPELESS:g} times as long as the fastest one's"
    for name, seconds in calls.items():
        if seconds > HOPELESS * calls[best]:
            found.append(Outcome(name, "slower", why, seconds, calls[best] / seconds))
    return found


def moved(draft: Draft, attempt: Attempt, result: Result) -> Result:
    """The result written again into ``draft``, without what was dropped on the way."""
    options = attempt.options
    bench = Workbench(draft, options.backend, options.target)
    source = bench.source(attempt.recipe.source) if options.keeps_source else None
    return replace(result, source=source, best=bench.again(result.best, result.lowered, attempt.name))
