"""The waterfall: what each pass gave, in milliseconds, megabytes and error, as plain JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ..compiler.program import Program
from ..compiler.weights import stored_bytes
from .decide import Result
from .lower import Step
from .prefixes import Prefixes

Json = dict[str, Any]


def waterfall(source: Program, result: Result, prefixes: Prefixes) -> Json:
    """``rows``: one a pass that changed something, declined something or was reverted, in pipeline order.

    ``seconds``: what a call takes more since the pass (less: negative), null where it was not measured.
    ``how``: ``prefix``, the program before and after it; ``left out``, the result without it alone, figures
    that do not add up; or a later pass, in whose figures its own are. ``bytes``: of weights, more since the
    pass. ``error``: more since the pass, in the report's metric; null for passes that change no value.
    ``exact``: all passes that do not approximate, together. ``total``: from the source to the result.
    ``unmeasured``: approximating passes without figures; ``why`` says why not all were measured alone.
    """
    latency = None if result.race is None else result.race.candidates[0].latency.median
    before = stored_bytes(source)
    worst = None if result.proof is None else result.proof.worst
    rows = [_row(name, result, prefixes, latency, before) for name in _names(result)]
    first = next(iter(prefixes.measured), None)
    return {
        "rows": rows,
        "exact": None if first is None or first.count else _exact(result, first.time, first.error, latency),
        "total": {
            "nodes": sum(row["nodes"] for row in rows),
            "declined": sum(row["declined"] for row in rows),
            "seconds": _change(result),
            "bytes": stored_bytes(result.lowered.program) - before,
            "error": None if worst is None else worst.scaled,
        },
        "unmeasured": [row["pass"] for row in rows if row["pass"] in prefixes.names and not row["how"]],
        "why": prefixes.why,
    }


def _names(result: Result) -> list[str]:
    told = (s.step.name for s in result.lowered.steps if s.result.changed or s.result.declined)
    return list(dict.fromkeys((*told, *result.reverted)))


def _row(name: str, result: Result, prefixes: Prefixes, latency: float | None, before: int) -> Json:
    runs = [step for step in result.lowered.steps if step.step.name == name]
    seconds = error = None
    how = ""
    if name in prefixes.names:
        how = "prefix" if prefixes.told_with(name) == name else prefixes.told_with(name)
        if (found := prefixes.step(name)) is not None:
            old, new = found
            error = new.error - old.error
            seconds = None if latency is None else latency * (new.time - old.time)
    else:
        gain = next((trial.gain for trial in result.trials if trial.name == name), None)
        if gain is not None and name not in result.reverted:
            how, seconds = "left out", None if latency is None else latency * (1 - gain.ratio)
    return {
        "pass": name,
        "nodes": sum(step.result.changed for step in runs),
        "declined": len(runs[-1].result.declined) if runs else 0,
        "seconds": seconds,
        "how": how,
        "bytes": _bytes(name, result.lowered.steps, before),
        "error": error,
        "reverted": result.reverted.get(name, ""),
    }


def _bytes(name: str, steps: Sequence[Step], before: int) -> int:
    """What the weights grew by while the pass ran, each time that it did."""
    sizes = [before, *(step.weights for step in steps)]
    changes = (after - old for old, after in pairwise(sizes))
    return sum(change for step, change in zip(steps, changes, strict=True) if step.step.name == name)


def _exact(result: Result, time: float, error: float, latency: float | None) -> Json:
    whole = _change(result)
    approximated = None if latency is None else latency * (1 - time)
    seconds = None if whole is None or approximated is None else whole - approximated
    return {"seconds": seconds, "error": error}


def _change(result: Result) -> float | None:
    """Seconds a call takes more than the source's."""
    if result.race is None:
        return None
    optimized, source = result.race.candidates
    return optimized.latency.median - source.latency.median
