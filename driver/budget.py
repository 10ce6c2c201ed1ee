"""The choice of weights' formats under a budget: predicted from sensitivity, built, measured, corrected."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from ..compiler.draft import Draft
from ..compiler.errors import InputError, ToolError, VerificationError
from ..compiler.options import CompileOptions
from ..compiler.reference import Arrays
from ..passes.base import Plan
from .calibration import LARGEST
from .context import backend_of, unsupported
from .decide import Judge
from .formats import approximating
from .groups import Group
from .lower import Recipe
from .meter import Meter
from .metric import Metric
from .probe import Swapped, reached
from .progress import Journal
from .proof import Evidence, prove
from .search import Search
from .sensitivity import Row, sensitivity, table_of
from .workbench import Workbench, tensor_bytes


@dataclass(frozen=True, slots=True)
class Settled:
    """What was chosen for every group, and its error, predicted and as built, in the budget's own figure."""

    rows: Mapping[Group, Row]
    metric: Metric
    budget: float
    error: float

    @property
    def plan(self) -> Plan:
        """By pass and weight: the options."""
        return plan_of(self.rows)

    def report(self) -> dict[str, Any]:
        """As plain JSON."""
        predicted = self.metric.figure(sum(row.error for row in self.rows.values()))
        facts = {"metric": self.metric.name, "budget": self.budget, "error": self.error}
        return {**facts, "predicted": predicted, "groups": table_of(self.rows)}


def plan_of(rows: Mapping[Group, Row]) -> dict[str, dict[str, str]]:
    """By pass and weight: the options, as passes read them."""
    plan: dict[str, dict[str, str]] = {}
    for group, row in rows.items():
        for name, text in row.format.planned:
            plan.setdefault(name, {}).update(dict.fromkeys(group.weights, text))
    return plan


def can_choose(recipe: Recipe, options: CompileOptions) -> bool:
    """Whether there is anything to choose, and room for it: the backend takes the rest of the program."""
    replacing = approximating(recipe.pipeline)
    if not options.approximates or not replacing or tensor_bytes(recipe.source) > LARGEST:
        return False
    plain = recipe.lower(frozenset(step.name for step in replacing)).program
    return not unsupported(plain, options)


def settled(
    recipe: Recipe,
    options: CompileOptions,
    samples: Sequence[Arrays],
    evidence: Evidence | None,
    journal: Journal,
) -> Settled:
    """The formats of the recipe's weights under ``options.budget`` for its backend, with the goal made least.

    Raises: InputError without calibration data, VerificationError if nothing holds the budget.
    """
    assert options.budget is not None
    with (
        opened_search(recipe, options, samples, evidence, journal) as (search, meter),
        journal.stage("choose"),
    ):
        chosen, found = search.run()
    return held(chosen, meter.metric, options.budget, found)


def held(chosen: Mapping[Group, Row] | None, metric: Metric, budget: float, found: float) -> Settled:
    """The choice, whose additive error is ``found``. Raises: VerificationError if there is none."""
    error = metric.figure(found)
    if chosen is None:
        fact = f"can't be held: the least error found is {error:.2g} ({metric.name})"
        raise VerificationError(f"--budget {budget:g}", fact, f"allow {error * 1.1:.2g}")
    return Settled(chosen, metric, budget, error)


@contextmanager
def opened_search(
    recipe: Recipe,
    options: CompileOptions,
    samples: Sequence[Arrays],
    evidence: Evidence | None,
    journal: Journal,
) -> Iterator[tuple[Search, Meter]]:
    """Sensitivities measured, or read from the cache, and all that a search under a budget needs.

    Without ``evidence`` nothing is built: errors are those of the weights alone.
    Raises: InputError without calibration data.
    """
    assert options.budget is not None
    if not samples:
        fix = "give inputs with --calib, or don't leave out the proof"
        raise InputError("--budget", "there is nothing to measure errors on", fix)
    steps = list(recipe.pipeline)
    replacing = approximating(steps)
    plain = recipe.lower(frozenset(step.name for step in replacing)).program
    metric = Metric(None if plain.decoding is None else plain.decoding.vocabulary)
    program, context = reached(recipe.source, steps[: steps.index(replacing[0])], recipe.context)
    with Meter(program, steps, context, samples, metric, options.precision, options.threads) as meter:
        with journal.stage("sensitivity"):
            rows = sensitivity(meter, journal)
        yield (
            Search(
                rows={group: [row for row in rows if row.group == group] for group in meter.groups},
                cost=cost_of(options, metric, meter),
                swapped=lambda chosen: meter.error(swapped_by(meter, chosen)),
                built=None if evidence is None else AsBuilt(recipe, options, evidence, meter, journal),
                bound=metric.additive(options.budget),
            ),
            meter,
        )


def swapped_by(meter: Meter, chosen: Mapping[Group, Row]) -> dict[str, Swapped]:
    """All weights as chosen."""
    found: dict[str, Swapped] = {}
    for group, row in chosen.items():
        made = meter.made(group, row.format)
        found.update({} if made is None else made.swapped)
    return found


def cost_of(options: CompileOptions, metric: Metric, meter: Meter) -> Callable[[Row], float]:
    """What is made least: bytes stored; or for speed what a token reads, or products take.

    A decoded token of a language model waits for its weights. Other models compute: there a format counts
    as the bytes of float32 over how many times as fast its kernel is, where the backend was measured, else
    as what is read; float16 as no less than float32, which it is made before it is multiplied. Bytes stored
    decide between equals.
    """
    if options.goal == "size":
        return lambda row: row.nbytes + row.elsewhere

    def seconds(row: Row) -> float:
        if metric.vocabulary is not None:
            return row.read + row.elsewhere + 1e-6 * row.nbytes
        total, widened = 0.0, row.format.kernel == "fp16"
        for name, uses in meter.groups[row.group].items():
            tensor = meter.program.main.graph.initializers[name].const_value
            assert tensor is not None
            columns, rows = tensor.shape.numpy()[:: 1 if uses.turned else -1]
            gain = meter.context.speed(row.format.kernel, rows, columns, 1.0)
            total += 4 * rows * columns / gain if (gain > 1 or widened) and uses.products else 0.0
        return (total or row.read) + row.elsewhere + 1e-6 * row.nbytes

    return seconds


@dataclass(frozen=True, slots=True)
class AsBuilt:
    """Builds a choice in a scratch folder and measures it: its proof, and the meter's samples."""

    recipe: Recipe
    options: CompileOptions
    evidence: Evidence
    meter: Meter
    journal: Journal

    def __call__(self, chosen: Mapping[Group, Row]) -> float:
        """The additive error; 0 where it can't run on this machine."""
        context = replace(self.recipe.context, plan=plan_of(chosen))
        recipe, options, metric = replace(self.recipe, context=context), self.options, self.meter.metric
        with tempfile.TemporaryDirectory(prefix="miaotui-") as folder, Draft(Path(folder, "try")) as draft:
            bench = Workbench(draft, backend_of(options), options.target)
            built = bench.optimized(recipe.lower(), "try")
            judge = Judge(bench, recipe, self.evidence, options, self.journal)
            try:
                proof = prove(built, self.evidence, judge.limit(built), options.threads)
                with built.open(options.threads) as runner:
                    seen = self.meter.error_of(runner.run)
            except ToolError as missing:
                self.journal.note(f"the budget is held by weights alone, nothing was run: {missing}")
                return 0.0
        assert options.budget is not None
        shares = (d.scaled / d.tolerance if d.tolerance else 0.0 if d.ok else inf for d in proof.found)
        return max(seen, metric.additive(options.budget * max(shares, default=0.0)))
