"""Going through a row in vectors: whole ones, then what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .build import Body
from .kernel import Cpu

_SUMS = 4
"""Vectors of partial results side by side: what the latency of an addition needs."""

SERIAL = 8192
"""Numbers below which waking other threads costs more than they give."""


def sweep(b: Body, columns: Any, lanes: int, write: Callable[[Any, int], None]) -> None:
    """``write(first column, columns)`` for vectors of ``lanes``, then a shorter one or single numbers."""
    whole = columns // lanes
    with b.serial(whole) as i:
        write(i * lanes, lanes)
    if isinstance(columns, int):
        if columns % lanes:
            write(whole * lanes, columns % lanes)
        return
    with b.span(whole * lanes, columns) as at:
        write(at, 1)


def reduce(
    b: Body,
    columns: Any,
    lanes: int,
    start: float,
    value: Callable[[Any], Any],
    join: Callable[[Any, Any], Any],
    before: Callable[[Any, int], None] | None = None,
) -> Any:
    """``join`` of ``value(column)`` over a row: a buffer whose first number it is.

    ``before(first column, columns)`` is written before each vector is read. float32 sums of ``4 * lanes``
    parts: less rounding than one number after the other.
    """
    parts = b.local(_SUMS, lanes)
    b.fill(parts, start)

    def take(at: Any, count: int, part: int) -> None:
        if before is not None:
            before(at, count)
        with b.vector(count) as v:
            b.store(parts, join(parts[part, v], value(at + v)), part, v)

    step = _SUMS * lanes
    with b.serial(columns // step) as i:
        for part in range(_SUMS):
            take(i * step + part * lanes, lanes, part)
    done = columns // step * step
    sweep(b, columns - done, lanes, lambda at, count: take(done + at, count, 0))
    for part in range(1, _SUMS):
        with b.vector(lanes) as v:
            b.store(parts, join(parts[0, v], parts[part, v]), 0, v)
    return fold(b, parts.row((0,)), join)


def fold(b: Body, vector: Any, join: Callable[[Any, Any], Any]) -> Any:
    """All numbers of an array in registers joined, halves with halves: a buffer of one."""
    width = int(vector.shape[0])
    while width > 1:
        width //= 2
        half = b.local(width)
        with b.vector(width) as v:
            b.store(half, join(vector[v], vector[v + width]), v)
        vector = half
    return vector


def each_row(b: Body, rows: Any, columns: Any, cpu: Cpu) -> Any:
    """The loop over rows; in parallel, but for little work that is known to be."""
    small = isinstance(rows, int) and isinstance(columns, int) and rows * columns < SERIAL
    return b.serial(rows) if cpu.threads == 1 or small else b.parallel(rows)
