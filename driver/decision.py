"""The decision between backends: what was measured of each, which one is kept, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..runtime.timing import Timings

State: TypeAlias = Literal["kept", "slower", "as fast", "failed", "left out"]

MARGIN = 0.98
"""A candidate is slower than another if its speedup over it is, with 95 % confidence, below this."""

TIE = "as fast within the noise"

FEW, FEW_MARGIN = 6, 0.9
"""With fewer rounds there is no such confidence: then every round has to say so, and by this much."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a candidate, by its backend's name.

    ``seconds``: of a call, median; None if it was not timed. ``ratio``: times as fast as the kept one,
    between ``low`` and ``high``. ``why``: in a sentence, where it was not timed.
    """

    backend: str
    state: State
    why: str = ""
    seconds: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of every candidate, the kept one's first. ``cached``: an earlier compile measured it."""

    outcomes: tuple[Outcome, ...]
    cached: bool = False

    @property
    def kept(self) -> str:
        """The backend that is kept."""
        return next(outcome.backend for outcome in self.outcomes if outcome.state == "kept")

    @property
    def contested(self) -> bool:
        """Whether more than one candidate was tried."""
        return sum(outcome.state != "left out" for outcome in self.outcomes) > 1

    def to_json(self) -> dict[str, Any]:
        """As the report and the cache have it."""
        rows = [
            {name: getattr(outcome, name) for name in Outcome.__dataclass_fields__}
            for outcome in self.outcomes
        ]
        return {"kept": self.kept, "cached": self.cached, "candidates": rows}


def decided(timings: Timings, order: Sequence[str]) -> tuple[Outcome, ...]:
    """Outcomes of timed candidates, whose names ``order`` has with the preferred ones first.

    Kept is the first of those that none is faster than beyond the noise: whoever comes later in the order has
    to be measurably faster than all before it.
    """
    fastest = min(order, key=lambda name: timings.latency(name).median)
    kept = next(name for name in order if name == fastest or not is_slower(timings, name, fastest))
    outcomes = []
    for name in order:
        median = timings.latency(name).median
        if name == kept:
            outcomes.append(Outcome(name, "kept", seconds=median, ratio=1.0, low=1.0, high=1.0))
            continue
        gain = timings.speedup(name, kept)
        state: State = "slower" if is_slower(timings, name, kept) else "as fast"
        why = TIE if state == "as fast" else ""
        outcomes.append(Outcome(name, state, why, median, gain.ratio, gain.low, gain.high))
    return tuple(outcomes)


def is_slower(timings: Timings, name: str, other: str) -> bool:
    """Whether ``name`` is slower than ``other`` beyond the noise."""
    rounds = len(timings.rounds[name])
    return timings.speedup(name, other).high < (MARGIN if rounds >= FEW else FEW_MARGIN)


def read(data: Mapping[str, Any]) -> Decision | None:
    """The decision that ``to_json`` wrote, as one from the cache; None if it is no such."""
    try:
        outcomes = tuple(Outcome(**row) for row in data["candidates"])
        found = Decision(outcomes, cached=True)
        return found if found.kept == data["kept"] and found.contested else None
    except (KeyError, TypeError, StopIteration):
        return None


def told(choice: Mapping[str, Any] | None) -> list[str]:
    """A report's decision in lines: who was kept, then what became of each other candidate."""
    if choice is None:
        return []
    lines = [
        f"{choice['kept']} was kept" + (", as measured by an earlier compile" if choice["cached"] else "")
    ]
    for row in choice["candidates"]:
        name, why = row["backend"], row["why"]
        if row["seconds"] is None:
            lines += [f"{name}: {row['state']}, {why}"] if row["state"] != "kept" else []
            continue
        spread = (
            "" if row["low"] is None or row["state"] == "kept" else f" [{row['low']:.2f}, {row['high']:.2f}]"
        )
        ratio = "" if row["state"] == "kept" else f", {row['ratio']:.2f}{spread} times as fast"
        lines.append(f"{name}: {1e3 * row['seconds']:.3g} ms{ratio}" + (f"; {why}" if why else ""))
    return lines
