"""The search for formats: the cheapest within a bound as predicted, measured, corrected until it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .groups import Group
from .knapsack import cheapest
from .sensitivity import Row

TRIES = 5
"""Builds, at most, to find the coarsest choice that holds the budget."""

SWAPS = 12
"""Choices, at most, that are measured with swapped weights alone."""

USED = 0.8
"""Share of the budget from which on a choice has used it."""

_AIM = 0.93
"""Share of the budget that a corrected choice aims at."""


@dataclass(slots=True)
class Search:
    """One search: rows by group, what they cost, and how a choice's additive error is measured.

    ``swapped``: of weights alone, in a second or so; ``built``: of the whole as it is built.
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
                if best is None or self.total(chosen) < self.total(best[0]):
                    best = chosen, found
                holds = max(holds, (predicted, found))
                if found >= USED * self.bound or self._is_cheapest(chosen):
                    break
            else:
                fails = min(fails or (predicted, found), (predicted, found))
            allowed = self._corrected(holds, fails, predicted, found)
        if best is None:
            chosen = self.choice(0.0)
            found = self.measured(chosen)
            least = min(least, found)
            if found <= self.bound:
                best = chosen, found
        return (None, least) if best is None else best

    def raised(self, start: Mapping[Group, Row], found: float) -> tuple[dict[Group, Row] | None, float]:
        """``start``, whose additive error is ``found``, with groups in finer formats until the bound holds.

        One group after the other, the step first that takes most error away for what it costs.
        None, and the least error seen, if no step is left.
        """
        chosen, least, builds = dict(start), found, 0
        while found > self.bound:
            predicted = sum(row.error for row in chosen.values())
            goal = predicted * _AIM * self.bound / found if builds < TRIES else 0.0
            moved = False
            while sum(row.error for row in chosen.values()) > goal and (step := self._best_step(chosen)):
                chosen[step.group] = step
                moved = True
            if not moved:
                return None, least
            builds += 1
            found = self.measured(chosen)
            least = min(least, found)
        return chosen, found

    def measured(self, chosen: Mapping[Group, Row]) -> float:
        """The additive error of a choice, swapped and built."""
        return max(self.swapped(chosen), 0.0 if self.built is None else self.built(chosen))

    def _best_step(self, chosen: Mapping[Group, Row]) -> Row | None:
        """The finer row of a group that takes most error away for what it costs; None if there is none."""
        best: tuple[float, Row] | None = None
        for group, row in chosen.items():
            for finer in self.rows[group]:
                if finer.error < row.error:
                    price = max(self.cost(finer) - self.cost(row), 1e-9)
                    gain = (row.error - finer.error) / price
                    if best is None or gain > best[0]:
                        best = gain, finer
        return None if best is None else best[1]

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

    def total(self, chosen: Mapping[Group, Row]) -> float:
        """What a choice costs."""
        return sum(self.cost(row) for row in chosen.values())

    def _is_cheapest(self, chosen: Mapping[Group, Row]) -> bool:
        return all(self.cost(row) <= min(map(self.cost, self.rows[group])) for group, row in chosen.items())
