"""The choice of weights' formats under a budget: predicted from sensitivity, built, measured, corrected."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from .knapsack import cheapest
from .lower import Recipe
from .meter import Meter
from .metric import Metric
from .probe import Swapped, reached
from .progress import Journal
from .proof import Evidence, prove
from .sensitivity import Row, sensitivity
from .workbench import Workbench, tensor_bytes

TRIES = 5
"""Builds, at most, to find the coarsest choice that holds the budget."""

SWAPS = 12
"""Choices, at most, that are measured with swapped weights alone."""

USED = 0.8
"""Share of the budget from which on a choice has used it."""

_AIM = 0.93
"""Share of the budget that a corrected choice aims at."""


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
        groups = [
            {
                "group": group.name,
                "weights": list(group.weights),
                "format": row.format.label,
                "error": row.error,
                "measured": row.measured,
                "bytes": row.nbytes,
            }
            for group, row in self.rows.items()
        ]
        facts = {"metric": self.metric.name, "budget": self.budget, "error": self.error}
        return {**facts, "predicted": predicted, "groups": groups}


def plan_of(rows: Mapping[Group, Row]) -> dict[str, dict[str, str]]:
    """By pass and weight: the options, as passes read them."""
    plan: dict[str, dict[str, str]] = {}
    for group, row in rows.items():
        for name, text in row.format.options:
            plan.setdefault(name, {}).update(dict.fromkeys(group.weights, text))
    return plan


@dataclass(slots=True)
class Search:
    """One search: rows by group, what they cost, and how an error is measured.

    ``errors``: by choice, what was found so far, in additive form.
    """

    rows: Mapping[Group, Sequence[Row]]
    cost: Callable[[Row], float]
    swapped: Callable[[Mapping[Group, Row]], float]
    built: Callable[[Mapping[Group, Row]], float] | None
    bound: float

    def choice(self, allowed: float) -> dict[Group, Row]:
        """The cheapest rows whose errors sum up to ``allowed`` at most."""
        listed = list(self.rows.values())
        errors = [[row.error for row in rows] for rows in listed]
        picked = cheapest(errors, [[self.cost(row) for row in rows] for rows in listed], allowed)
        pairs = zip(self.rows, listed, picked, strict=True)
        return {group: rows[index] for group, rows, index in pairs}

    def run(self) -> tuple[dict[Group, Row] | None, float]:
        """The cheapest choice found to hold the bound, with its error; else None and the least error seen."""
        best: tuple[dict[Group, Row], float] | None = None
        holds, fails = (0.0, 0.0), None  # predicted and measured sums: the greatest and least such
        allowed, builds, least = self.bound * _AIM, 0, float("inf")
        seen: set[tuple[str, ...]] = set()
        for _ in range(SWAPS):
            chosen = self.choice(allowed)
            labels = tuple(row.format.label for row in chosen.values())
            if labels in seen:
                break
            seen.add(labels)
            predicted = sum(row.error for row in chosen.values())
            found = self.swapped(chosen)
            if found <= self.bound and self.built is not None:
                if builds == TRIES:
                    break
                builds += 1
                found = max(found, self.built(chosen))
            least = min(least, found)
            if found <= self.bound:
                if best is None or self._total(chosen) < self._total(best[0]):
                    best = chosen, found
                holds = max(holds, (predicted, found))
                if found >= USED * self.bound or self._is_cheapest(chosen):
                    break
            else:
                fails = min(fails or (predicted, found), (predicted, found))
            allowed = self._corrected(holds, fails, predicted, found)
        if best is None:
            chosen = self.choice(0.0)
            found = max(self.swapped(chosen), self.built(chosen) if self.built is not None else 0.0)
            least = min(least, found)
            if found <= self.bound:
                best = chosen, found
        return (None, least) if best is None else best

    def _corrected(
        self, holds: tuple[float, float], fails: tuple[float, float] | None, predicted: float, found: float
    ) -> float:
        """The predicted sum at which about ``_AIM`` of the bound is reached."""
        aim = _AIM * self.bound
        if fails is None:
            return max(predicted, 1e-12 * self.bound) * min(8.0, aim / max(found, 1e-3 * aim))
        if found > self.bound and holds == (0.0, 0.0):
            return predicted * max(0.05, 0.97 * aim / found)
        (low, below), (high, above) = holds, fails
        share = min(0.9, max(0.1, (aim - below) / max(above - below, 1e-300)))
        return low + (high - low) * share

    def _total(self, chosen: Mapping[Group, Row]) -> float:
        return sum(self.cost(row) for row in chosen.values())

    def _is_cheapest(self, chosen: Mapping[Group, Row]) -> bool:
        return all(self.cost(row) <= min(map(self.cost, self.rows[group])) for group, row in chosen.items())


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
        judged = None if evidence is None else AsBuilt(recipe, options, evidence, meter, journal)
        with journal.stage("choose"):
            search = Search(
                rows={group: [row for row in rows if row.group == group] for group in meter.groups},
                cost=cost_of(options, metric, meter),
                swapped=lambda chosen: meter.error(swapped_by(meter, chosen)),
                built=judged,
                bound=metric.additive(options.budget),
            )
            chosen, found = search.run()
    error = metric.figure(found)
    if chosen is None:
        fact = f"can't be held: the least error found is {error:.2g} ({metric.name})"
        raise VerificationError(f"--budget {options.budget:g}", fact, f"allow {error * 1.1:.2g}")
    return Settled(chosen, metric, options.budget, error)


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
    as what is read. Bytes stored decide between equals.
    """
    if options.goal == "size":
        return lambda row: row.nbytes

    def seconds(row: Row) -> float:
        if metric.vocabulary is not None:
            return row.read + 1e-6 * row.nbytes
        total = 0.0
        for name, uses in meter.groups[row.group].items():
            tensor = meter.program.main.graph.initializers[name].const_value
            assert tensor is not None
            columns, rows = tensor.shape.numpy()[:: 1 if uses.turned else -1]
            gain = meter.context.speed(row.format.kernel, rows, columns, 1.0)
            total += 4 * rows * columns / gain if gain > 1 and uses.products else 0.0
        return (total or row.read) + 1e-6 * row.nbytes

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
