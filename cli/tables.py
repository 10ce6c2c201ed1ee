"""Human tables of a report: operators before and after, passes, error, latency, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

OPERATORS_SHOWN = 12


def table(*headings: str, title: str | None = None) -> Table:
    """A plain table; columns whose heading starts with ``>`` are right-aligned."""
    made = Table(
        box=None, title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False
    )
    for heading in headings:
        right = heading.startswith(">")
        made.add_column(
            heading.lstrip(">"), justify="right" if right else "left", overflow="fold", no_wrap=right
        )
    return made


def facts(console: Console, rows: Iterable[tuple[str, object]]) -> None:
    """Two columns, name and fact; rows whose fact is None or empty are left out."""
    made = Table(box=None, show_header=False, pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, fact in rows:
        if fact is not None and fact != "":
            made.add_row(name, str(fact))
    put(console, made)


def put(console: Console, made: Table) -> None:
    """Print a table; without a terminal its lines have no trailing spaces."""
    if console.is_terminal:
        console.print(made)
        return
    with console.capture() as text:
        console.print(made)
    for line in text.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)


def operators(before: Mapping[str, int], after: Mapping[str, int], *, everything: bool = False) -> Table:
    """Operator counts before and after, those that changed most first; a dozen unless ``everything``."""
    names = sorted({*before, *after}, key=lambda op: (-abs(before.get(op, 0) - after.get(op, 0)), op))
    shown = names if everything else names[:OPERATORS_SHOWN]
    made = table("operator", ">before", ">after")
    made.add_row("all", str(sum(before.values())), str(sum(after.values())), style="bold")
    for op in shown:
        made.add_row(op, _count(before.get(op, 0)), _count(after.get(op, 0)))
    if rest := names[len(shown) :]:
        were, are = (sum(counts.get(op, 0) for op in rest) for counts in (before, after))
        made.add_row(f"{len(rest)} others", str(were), str(are))
    return made


def counted(operators: Mapping[str, int], *, everything: bool = False) -> Table:
    """Operator counts of a model that nothing was done to, most frequent first."""
    names = sorted(operators, key=lambda op: (-operators[op], op))
    made = table("operator", ">nodes")
    made.add_row("all", str(sum(operators.values())), style="bold")
    for op in names if everything else names[:OPERATORS_SHOWN]:
        made.add_row(op, str(operators[op]))
    if not everything and (rest := names[OPERATORS_SHOWN:]):
        made.add_row(f"{len(rest)} others", str(sum(operators[op] for op in rest)))
    return made


def fired(passes: Sequence[Mapping[str, Any]], *, everything: bool = False) -> Table:
    """One row per pass that changed something or was reverted; with ``everything`` per pass that ran."""
    made = table("pass", ">rewrites", ">declined", ">ms", "")
    for name in dict.fromkeys(str(entry["name"]) for entry in passes):
        runs = [entry for entry in passes if entry["name"] == name]  # cleanup runs more than once
        rewrites = sum(entry.get("changed", 0) for entry in runs)
        remarks = [f"reverted: {entry['reverted']}" for entry in runs if entry.get("reverted")]
        if not (everything or rewrites or remarks):
            continue
        gain = next((entry["gain"] for entry in runs if entry.get("gain")), None)
        if gain and not remarks:
            remarks = [f"{gain['ratio']:.2f}× the speed without it"]
        declined = _count(len(runs[-1].get("declined", ())))
        milli = 1000 * sum(entry.get("seconds", 0.0) for entry in runs)
        made.add_row(name, str(rewrites), declined, f"{milli:.1f}", "; ".join(remarks))
    return made


def waterfall(report: Mapping[str, Any], *, everything: bool = False) -> Table:
    """One row per pass that changed something or was reverted, in order, and what all gave together."""
    fall, error = report["waterfall"], report.get("error") or {}
    metric = "KL" if error.get("metric") == "kl" else "error"
    made = table("pass", ">rewrites", ">declined", ">Δ ms", ">Δ MB", f">Δ {metric}", "")
    for row in fall["rows"]:
        if everything or row["nodes"] or row["reverted"]:
            remark = f"reverted: {row['reverted']}" if row["reverted"] else told_how(row["how"])
            if row["pass"] in fall["unmeasured"]:
                remark = "not measured"
            made.add_row(row["pass"], _count(row["nodes"]), _count(row["declined"]), *_changes(row), remark)
    total = fall["total"]
    counts = _count(total["nodes"]), _count(total["declined"])
    made.add_row("source to result", *counts, *_changes(total), style="bold")
    return made


def told_how(how: str) -> str:
    """How a row of the waterfall was measured, in words."""
    known = {"": "", "prefix": "before and after", "left out": "against leaving it out"}
    return known.get(how, f"measured with {how}")


def _changes(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return _signed(row["seconds"], 1e3), _signed(row["bytes"] or None, 1e-6), _signed(row["error"], 1.0)


def _signed(value: float | None, scale: float) -> str:
    """With its sign, in three figures; a dash for nothing, or nothing known."""
    return "–" if value is None else f"{value * scale:+.3g}"


def why_not(passes: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """One row per node that one of the passes ``names`` declined, with the reason."""
    made = table("pass", "node", "reason")
    for entry in passes:
        if entry["name"] in names:
            for note in entry.get("declined", ()):
                node, _, reason = str(note).partition(": ")
                made.add_row(str(entry["name"]), node, reason)
    for name in names:
        if not any(entry["name"] == name and entry.get("declined") for entry in passes):
            ran = any(entry["name"] == name for entry in passes)
            hits = sum(entry.get("changed", 0) for entry in passes if entry["name"] == name)
            told = f"declined nothing ({hits} rewrites)" if ran else "did not run at this level and target"
            made.add_row(name, "", told)
    return made


def latency(report: Mapping[str, Any]) -> str:
    """As ``30.1 ms → 21.0 ms (p90 22.4 ms), 1.43× [1.40, 1.46]; 2 threads``; empty without timings."""
    source, optimized = report.get("source"), report.get("optimized")
    if not optimized:
        return ""
    now = f"{duration(optimized['median'])} (p90 {duration(optimized['p90'])})"
    if not source:
        return now + _conditions(report)
    low, high = report.get("ci95") or (None, None)
    spread = f" [{low:.2f}, {high:.2f}]" if low is not None and high is not None else ""
    ratio = f", {report['ratio']:.2f}×{spread}" if report.get("ratio") is not None else ""
    return f"{duration(source['median'])} → {now}{ratio}{_conditions(report)}"


def _conditions(report: Mapping[str, Any]) -> str:
    threads = report.get("threads")
    parts = [f"{threads} thread{'s' if threads != 1 else ''}"] if threads else []
    parts += [f"{name} {kind}" for name, kind in (report.get("inputs") or {}).items()]
    told = ", ".join(parts)
    return f"; {told}" if told else ""


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them, three figures.

    >>> duration(0.0301), duration(12.5e-6)
    ('30.1 ms', '12.5 µs')
    """
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    unit, scale = next((u for u in units if seconds >= u[1]), units[-1])
    value = seconds / scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def megabytes(size: float) -> str:
    """Bytes as kB, MB or GB.

    >>> megabytes(88_000_000)
    '88.0 MB'
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def _count(number: int) -> str:
    return str(number) if number else "–"
