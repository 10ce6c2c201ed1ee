"""How rows of a run are dealt out: contiguous shares of replicas, cut into micro-batches, joined again."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...compiler.errors import InputError
from ...compiler.parallel.plan import EntryPlan, Part, Plan
from ...compiler.reference import Array, Arrays


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``start`` to ``stop`` of a run, for the replica number ``member``; ``stop`` None: all of it."""

    member: int
    start: int = 0
    stop: int | None = None


def pieces(rows: int, members: Sequence[int], micro_batches: int, size: int | None = None) -> list[Piece]:
    """``rows`` dealt out to ``members``, first ones the larger, each share in at most ``micro_batches``.

    ``size``: how many rows a piece must have, if its program takes no other.

    >>> [(p.member, p.start, p.stop) for p in pieces(5, [0, 1], 2)]
    [(0, 0, 2), (0, 2, 3), (1, 3, 4), (1, 4, 5)]
    >>> [(p.member, p.start, p.stop) for p in pieces(4, [0, 1], 1, size=1)]
    [(0, 0, 1), (0, 1, 2), (1, 2, 3), (1, 3, 4)]
    """
    if rows == 0:
        return [Piece(members[0])]
    if size is not None:
        count = rows // size
        return [
            Piece(member, number * size, (number + 1) * size)
            for member, (first, last) in zip(members, spans(count, len(members)), strict=True)
            for number in range(first, last)
        ]
    return [
        Piece(member, start + first, start + last)
        for member, (start, stop) in zip(members, spans(rows, len(members)), strict=True)
        for first, last in spans(stop - start, micro_batches)
        if last > first
    ]


def spans(count: int, parts: int) -> list[tuple[int, int]]:
    """``count`` things in ``parts`` contiguous spans, the first ones the larger."""
    whole, rest = divmod(count, parts)
    starts = [part * whole + min(part, rest) for part in range(parts + 1)]
    return list(itertools.pairwise(starts))


def rows_of(wiring: EntryPlan, arrays: Arrays) -> int | None:
    """Rows that can be dealt out; None if none can be. Raises: InputError if inputs have different counts."""
    rows: int | None = None
    differ = False
    for feed in wiring.feeds:
        if feed.batch is not None:
            count = arrays[feed.spec.name].shape[feed.batch]
            differ |= rows not in (None, count)
            rows = count
    if differ:
        counts = {
            f.spec.name: arrays[f.spec.name].shape[f.batch] for f in wiring.feeds if f.batch is not None
        }
        text = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise InputError("inputs", f"have different counts of rows: {text}", "make them equal")
    return rows


def fixed_rows(plan: Plan, entry: str) -> int | None:
    """How many rows a rank's program takes, if it takes no other count."""
    batch = {feed.spec.name: feed.batch for feed in plan.entries[entry].feeds}
    for share in plan.shares:
        for step in share.steps.get(entry, ()):
            for spec in step.signature.inputs if isinstance(step, Part) else ():
                axis = batch.get(spec.name)
                if axis is not None and spec.shape is not None and isinstance(size := spec.shape[axis], int):
                    return size
    return None


def cut(wiring: EntryPlan, arrays: Arrays, start: int, stop: int | None) -> Arrays:
    """What a piece is given."""
    if stop is None:
        return {feed.spec.name: arrays[feed.spec.name] for feed in wiring.feeds}
    return {feed.spec.name: _rows(arrays[feed.spec.name], feed.batch, start, stop) for feed in wiring.feeds}


def joined(wiring: EntryPlan, arrays: Arrays, found: Sequence[Mapping[str, Array]]) -> Arrays:
    """Outputs of the whole from those of the pieces, in order."""
    outputs: Arrays = {}
    for fetch in wiring.fetches:
        name = fetch.spec.name
        if fetch.stage < 0:
            outputs[name] = arrays[name]
        elif fetch.batch is None or len(found) == 1:
            outputs[name] = found[0][name]
        else:
            outputs[name] = np.concatenate([piece[name] for piece in found], fetch.batch)
    return outputs


def _rows(array: Array, axis: int | None, start: int, stop: int) -> Array:
    if axis is None or (start == 0 and stop == array.shape[axis]):
        return array
    return np.ascontiguousarray(array[(slice(None),) * axis + (slice(start, stop),)])
