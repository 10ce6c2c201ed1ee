"""Faithfulness: zeros and factors in weights aside, the executable computes what the source does."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..compiler.draft import Draft
from ..compiler.errors import CompileError
from ..compiler.options import CompileOptions, Precision, Target
from ..compiler.program import Program
from ..passes.base import PassContext
from ..passes.lowering.onnxruntime import LOWER_CPU, LOWER_CUDA
from ..passes.observers import run_pipeline
from ..runtime.compare import Difference, Limit, differences
from .context import precision_of
from .lower import Milestones, Recipe
from .progress import Journal
from .proof import Case, Evidence, Proof, prove
from .workbench import BACKENDS, SOURCE_BACKEND, Built, Workbench, tensor_bytes

LARGEST = 1 << 30
"""Bytes of weights up to which the program with approximated weights is run as it is."""


@dataclass(slots=True)
class Faithfulness:
    """Proves executables against the program as it is when its weights have been pruned and factored.

    What approximating costs is the budget's matter; all passes before and behind it have to be as exact as
    without. So the program just before the first of those passes is held against the source, and the
    executable against the program just behind the last, both run by the source backend without optimization.
    """

    recipe: Recipe
    evidence: Evidence
    options: CompileOptions
    journal: Journal
    _known: tuple[Milestones, tuple[Difference, ...], tuple[Case, ...]] | None = field(
        default=None, init=False
    )
    _told: bool = field(default=False, init=False)

    def limit(self, vocabulary: int | None) -> Limit:
        """What the precision allows without pruning; a budget above that is one for rounding too."""
        limit = self._plain(vocabulary, self.options.precision)
        budget = self.options.budget
        if budget is None or budget <= limit.figure or self.options.precision == "fp32":
            return limit
        return self._plain(vocabulary, self.options.precision, budget)

    def _plain(self, vocabulary: int | None, precision: Precision, budget: float | None = None) -> Limit:
        options = replace(self.options, sparsity=None, rank=None, precision=precision)
        return Limit.of(precision_of(self.recipe.source, options), vocabulary, budget)

    def proof(self, milestones: Milestones | None, built: Built) -> Proof | None:
        """None if no weights were to be pruned or factored, or the program can't be run without it: noted.

        Raises: ToolError if ``built`` can't run here.
        """
        if milestones is None:
            return None
        if (size := tensor_bytes(self.recipe.source)) > LARGEST:
            self._note(f"the program before optimization takes {size / 1e9:.1f} GB")
            return None
        vocabulary = None if built.decoding is None else built.decoding.vocabulary
        if self._known is None or self._known[0] is not milestones:
            try:
                exact = self._exact(milestones, vocabulary)
                cases = self._run(milestones.approximated)
            except CompileError as error:
                self._note(str(error).splitlines()[0])
                return None
            self._known = milestones, exact, cases
        _, exact, cases = self._known
        name = f"the program after {milestones.last}, not optimized otherwise"
        found = prove(built, Evidence(name, cases), self.limit(vocabulary), self.options.threads)
        return replace(found, found=(*exact, *found.found))

    def removed_too_much(self, limit: Limit) -> tuple[Difference, ...]:
        """What the program with approximated weights, proved against last, exceeds ``limit`` by itself."""
        cases = () if self._known is None else self._known[2]
        pairs = zip(cases, self.evidence.cases, strict=bool(cases))
        found = (differences(made.expected, case.expected, limit) for made, case in pairs)
        return tuple(item for each in found for item in each if not item.ok)

    def _exact(self, milestones: Milestones, vocabulary: int | None) -> tuple[Difference, ...]:
        limit, place = self._plain(vocabulary, "fp32"), f"before {milestones.first}"
        pairs = zip(self._run(milestones.exact), self.evidence.cases, strict=True)
        return tuple(
            replace(item, name=f"{place}: {item.name}")
            for made, case in pairs
            for item in differences(made.expected, case.expected, limit)
        )

    def _run(self, program: Program) -> tuple[Case, ...]:
        """What ``program`` computes of the inputs of all cases."""
        target, backend = Target(self.options.target.device), BACKENDS[SOURCE_BACKEND]
        plain = program.clone()
        plain.entries = {"main": plain.main}
        lowering = LOWER_CUDA if target.device == "cuda" else LOWER_CPU
        needed = [step for step in lowering if not step.optional]
        run_pipeline(plain, needed, PassContext(target, lambda node: backend.supports(node, target)))
        with tempfile.TemporaryDirectory(prefix="miaotui-") as folder, Draft(Path(folder, "plain")) as draft:
            built = Workbench(draft, SOURCE_BACKEND, target).source(plain)
            with built.open(self.options.threads) as runner:
                return tuple(Case(case.inputs, runner.run(case.inputs)) for case in self.evidence.cases)

    def _note(self, why: str) -> None:
        if not self._told:
            self.journal.note(f"not proved against the program with approximated weights: {why}")
            self._told = True
