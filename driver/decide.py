"""What is kept: wrong passes are bisected and reverted, slow ones left out, the rest proved and timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..compiler.errors import ToolError, VerificationError
from ..compiler.options import CompileOptions
from ..passes.lowering.tvm import TuneKernels
from ..passes.pipeline import offered, pipeline
from ..runtime.bench import BenchResult
from ..runtime.compare import Difference, Limit
from .bisect import IMPORT, find_culprit
from .context import check_session, precision_of
from .decision import Decision
from .faithful import Faithfulness
from .lower import Lowered, Recipe
from .never_slower import TOGETHER, Trial, Wider, add_what_pays, keep_what_pays, race
from .progress import Journal
from .proof import Evidence, Proof, prove
from .workbench import Built, Workbench, tensor_bytes

FINAL = 2.0
"""Seconds spent on the last comparison with the source."""


WHOLE = frozenset({TuneKernels.name})
"""Passes that are left out for a trial where a backend compiles the program as a whole, which takes long."""

BASELINE = 1 << 30
"""Bytes of weights up to which a source that is not kept is built and opened only to be timed against."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a compile decided: the program to write, and the evidence.

    ``decision``: of the backend. ``partition``: the parts that it was cut into, for the report.
    """

    lowered: Lowered
    best: Built
    source: Built | None = None
    reverted: dict[str, str] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    proof: Proof | None = None
    race: BenchResult | None = None
    decision: Decision | None = None
    partition: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Judge:
    """Proves and times candidates of one compile."""

    bench: Workbench
    recipe: Recipe
    evidence: Evidence
    options: CompileOptions
    journal: Journal
    faithfulness: Faithfulness = field(init=False)

    def __post_init__(self) -> None:
        checked = Faithfulness(self.recipe, self.evidence, self.options, self.journal)
        object.__setattr__(self, "faithfulness", checked)

    def judged(self, result: Result) -> Result:
        """The result proved; and if it can run here and timing is on, without the passes that cost time."""
        with self.journal.stage("verify"):
            result = self.proved(result)
        if result.proof is not None:
            check_session(result.best, self.options, self.journal)
        return self.finished(result)

    def finished(self, result: Result) -> Result:
        """A proved result without the passes that cost time, and timed; as it is where timing is off."""
        if result.proof is None or self.options.timing <= 0:
            return result
        with self.journal.stage("time"):
            timed = self.timed(result)
            if timed.best is result.best:
                return timed
            try:
                return self.proved(timed)
            except VerificationError as error:  # it had used the budget: leaving a pass out took the rest
                self.journal.note(f"nothing was left out for time: {error}")
                return self.raced(result)

    def proved(self, result: Result) -> Result:
        """Prove the result; while it fails, revert the pass that bisection names.

        Raises: VerificationError if no optional pass is to blame.
        """
        while True:
            try:
                proof = self.proof_of(result.lowered, result.best)
            except ToolError as missing:
                self.journal.note(f"not proved or timed here: {missing}")
                return result
            failed = proof.failed
            if failed is None:
                return replace(result, proof=proof)
            if proof.faithful is not None and (lost := self.faithfulness.removed_too_much(proof.limit)):
                raise _too_much_removed(result.lowered, proof.reference, lost)
            without = frozenset(result.reverted)
            culprit = find_culprit(
                self.recipe,
                self.bench,
                self.evidence.cases[0].inputs,
                failed.limit.scaled,
                lambda lowered, built: self.proof_of(lowered, built).ok,
                without,
            )
            if culprit is None or culprit.pass_name == IMPORT:
                facts = "; ".join(str(item) for item in failed.found if not item.ok)
                fact = f"differs from {failed.reference} without any optional pass: {facts}"
                fix = "raise --budget if this error is acceptable"
                if failed is not proof:
                    fix = "compile without --sparsity and --rank, and report it"
                raise VerificationError("verify", fact, fix)
            reason = f"wrong result: {culprit}"
            self.journal.note(f"reverted {culprit.pass_name}: {reason}")
            reverted = {**result.reverted, culprit.pass_name: reason}
            lowered = self.recipe.lower(frozenset(reverted))
            best = self.bench.optimized(lowered, f"repaired-{len(reverted)}")
            result = replace(result, lowered=lowered, best=best, reverted=reverted)

    def timed(self, result: Result) -> Result:
        """Leave out passes that cost time, then time what is left against the source."""
        options, inputs = self.options, self.evidence.cases[0].inputs
        only = None if self.bench.backend.name == "ort" else WHOLE & set(result.lowered.fired())
        if only is not None and not only:
            return self.raced(result)
        wider = self.widened(result)
        tried = {trial.name for trial in wider.trials}
        verdict = keep_what_pays(
            wider.recipe,
            self.bench,
            (wider.lowered, wider.built),
            inputs,
            without=frozenset(result.reverted),
            threads=options.threads,
            seconds=None if options.opt >= 3 else options.timing,
            only=frozenset(wider.lowered.fired()) - tried if only is None else only,
        )
        reverted = dict(result.reverted)
        for trial in verdict.trials:
            if trial.loses:
                reverted[trial.name] = f"costs time: {1 / trial.gain.ratio:.3f}× as fast without it"
                self.journal.note(f"reverted {trial.name}: {reverted[trial.name]}")
        if verdict.untried:
            left = ", ".join(verdict.untried)
            self.journal.note(f"not timed one by one within {options.timing:g} s (-O3 takes longer): {left}")
        kept = replace(result, lowered=verdict.lowered, best=verdict.built, reverted=reverted)
        return self.raced(replace(kept, trials=(*wider.trials, *verdict.trials)))

    def widened(self, result: Result) -> Wider:
        """The result with the passes that are off by themselves and save time here."""
        recipe, options = self.recipe, self.options
        start = Wider(recipe, result.lowered, result.best)
        names = [step.name for step in recipe.pipeline]
        is_usual = self.bench.backend.name == "ort" and names == [step.name for step in pipeline(options)]
        if not is_usual or (options.opt < 3 and result.best.weights > TOGETHER):
            return start
        found = add_what_pays(
            recipe,
            self.bench,
            (result.lowered, result.best),
            self.evidence.cases[0].inputs,
            offers=offered(options),
            without=frozenset(result.reverted),
            threads=options.threads,
        )
        for trial in found.trials:
            told = "taken" if trial.pays else "left out"
            self.journal.note(f"{trial.name} {told}: {trial.gain.ratio:.3f}× as fast with it")
        return found

    def raced(self, result: Result) -> Result:
        """The result timed against the source, if that fits in memory and runs here."""
        source, inputs = result.source, self.evidence.cases[0].inputs
        if source is None:
            if (size := tensor_bytes(self.recipe.source)) > BASELINE:
                self.journal.note(f"not timed against the source, which takes {size / 1e9:.1f} GB")
                return result
            source = self.bench.source(self.recipe.source)
        final = race(result.best, source, inputs, threads=self.options.threads, seconds=FINAL)
        return replace(result, source=source, race=final)

    def limit(self, built: Built) -> Limit:
        """What its outputs are judged by: the budget, else what the precision of its weights allows."""
        vocabulary = None if built.decoding is None else built.decoding.vocabulary
        return Limit.of(precision_of(self.recipe.source, self.options), vocabulary, self.options.budget)

    def proof_of(self, lowered: Lowered, built: Built) -> Proof:
        """What ``built`` computes from every case, against the source."""
        proof = prove(built, self.evidence, self.limit(built), self.options.threads)
        return replace(proof, faithful=self.faithfulness.proof(lowered.milestones, built))


def _too_much_removed(lowered: Lowered, reference: str, lost: tuple[Difference, ...]) -> VerificationError:
    """Pruning or factoring alone takes the results too far from the source's."""
    assert lowered.milestones is not None
    removed = " to ".join(dict.fromkeys((lowered.milestones.first, lowered.milestones.last)))
    facts = "; ".join(map(str, lost))
    fact = f"what {removed} took away changes the results of {reference} too much: {facts}"
    fix = "remove less, calibrate on real data with --calib, or raise --budget if this error is acceptable"
    return VerificationError("verify", fact, fix)
