"""Sensitivity: what each group of weights costs in error and bytes in each format, measured once, cached."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import cache
from .formats import Format
from .groups import Group
from .meter import Made, Meter
from .progress import Journal

PATIENCE = 240.0
"""Seconds after which formats that are left are estimated from a measured one of the same group."""

KIND = "sensitivity"
_KEEP = 32
"""Pairs after which what was measured is written to the cache, should the process end."""


@dataclass(frozen=True, slots=True)
class Row:
    """A group in a format. ``error``: additive, see Metric. ``local``: summed squared error of the products'
    outputs. ``nbytes``: stored; ``read``: by one product; ``elsewhere``: by which other weights grow, removed
    channels of which they made (negative). ``measured``: end to end, else the error of a
    measured format of the group times the ratio of local errors, both being of the second order.
    """

    group: Group
    format: Format
    error: float
    local: float
    nbytes: int
    read: int
    measured: bool = True
    elsewhere: int = 0


def sensitivity(meter: Meter, journal: Journal, patience: float = PATIENCE) -> list[Row]:
    """A row for every group in every format that it is offered in and that differs from its finer ones.

    What the cache knows is taken from there. Coarse formats are measured first, of all groups.
    """
    key = meter.key()
    known, before = cache.read(KIND, key), meter.program.source.get("model", "")
    found: dict[tuple[Group, Format], Row | None] = {}
    missing = []
    for each in reversed(meter.formats):
        for group in meter.groups:
            try:
                found[group, each] = _row(group, each, known[_entry(group, each)])
            except (KeyError, TypeError, ValueError):
                missing.append((group, each))
    end = time.monotonic() + patience
    for done, (group, each) in enumerate(missing, 1):
        made = meter.made(group, each)
        others = [row for other in meter.formats if (row := found.get((group, other)))]
        found[group, each] = row = None if made is None else _measured(meter, group, each, made, others, end)
        known[_entry(group, each)] = None if row is None else _plain(row)
        journal.count(done, len(missing))
        if done % _KEEP == 0 or done == len(missing):
            cache.write(KIND, key, known, before)
    rows = [row for group in meter.groups for each in meter.formats if (row := found[group, each])]
    estimated = sum(not row.measured for row in rows)
    if estimated:
        journal.note(
            f"{estimated} of {len(rows)} errors were estimated from one measured in the same weights"
        )
    return _different(rows)


def _measured(meter: Meter, group: Group, each: Format, made: Made, others: list[Row], end: float) -> Row:
    """Measured, or after ``end`` estimated, if something of the group was measured before."""
    if not any(text != "off" for _, text in each.options):
        return Row(group, each, 0.0, 0.0, made.nbytes, made.read, True, made.elsewhere)
    anchors = [row for row in others if row.measured and row.local > 0]
    if time.monotonic() < end or not anchors:
        error = meter.error(made.swapped)
        return Row(group, each, error, made.local, made.nbytes, made.read, True, made.elsewhere)
    anchor = min(anchors, key=lambda row: abs(row.local - made.local))
    error = anchor.error * made.local / anchor.local
    return Row(group, each, error, made.local, made.nbytes, made.read, False, made.elsewhere)


def _different(rows: list[Row]) -> list[Row]:
    """Without formats that a group keeps in the same bytes as another one, which is no worse."""
    kept: dict[tuple[Group, int, int, int, str], Row] = {}
    for row in rows:
        key = row.group, row.nbytes, row.read, row.elsewhere, row.format.kernel
        if key not in kept or row.error < kept[key].error:
            kept[key] = row
    return list(kept.values())


def _entry(group: Group, each: Format) -> str:
    return f"{each.label}: {' '.join(group.weights)}"


def _row(group: Group, each: Format, plain: Any) -> Row | None:
    if plain is None:
        return None
    error, local, nbytes, read, measured, elsewhere = plain
    figures = float(error), float(local), int(nbytes), int(read)
    return Row(group, each, *figures, bool(measured), int(elsewhere))


def _plain(row: Row) -> list[Any]:
    return [row.error, row.local, row.nbytes, row.read, row.measured, row.elsewhere]


def table_of(rows: Mapping[Group, Row]) -> list[dict[str, Any]]:
    """What was chosen, for report.json: group, format, error (additive), bytes, here and elsewhere."""
    return [
        {
            "group": group.name,
            "weights": list(group.weights),
            "format": row.format.label,
            "error": row.error,
            "measured": row.measured,
            "bytes": row.nbytes,
            "elsewhere": row.elsewhere,
        }
        for group, row in rows.items()
    ]
