"""Rows of a product taken in groups: each weight that is read serves a group of rows at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .build import Body
from .kernel import Cpu
from .transpose import SIDE, transpose

SQUARES = (8, 16)
"""Groups that are turned in registers."""

Input: TypeAlias = Callable[[int, Any], Any]
"""Of row g of a group, input k."""

TASK_BYTES = 256 << 10
"""Of weights that a thread goes through at a time: they stay in its second-level cache."""

_TASKS = 16
"""At least, where more than one thread may run."""


def sizes(rows: int | None, cpu: Cpu, most: int = 16) -> tuple[int, ...]:
    """Rows that are taken together, greatest first; of a known number, only those that occur.

    >>> sizes(37, Cpu(16)), sizes(1, Cpu(16)), sizes(None, Cpu(8))
    ((16, 5), (1,), (4, 2, 1))
    """
    most = most if cpu.lanes == 16 else 4
    if rows is None:
        return (most, most // 2, 4, 2, 1) if most > 4 else (4, 2, 1)
    return tuple(g for g in (most if rows >= most else 0, rows % most) if g)


def sums(group: int, most: int) -> int:
    """Sums side by side for each row of a group, up to ``most``: four in all, as an FMA's latency needs.

    More than that were slower where rows go in groups: their inputs are read one by one.

    >>> [sums(group, 4) for group in (1, 2, 3, 4, 8)]
    [4, 2, 1, 1, 1]
    """
    found = 1
    while 2 * found * group <= 4 and 2 * found <= most:
        found *= 2
    return found


def tasks(size: int, tiles: int, cpu: Cpu) -> int:
    """Into how many parts weights of ``size`` bytes in ``tiles`` tiles are cut, one a thread at a time."""
    shared = 1 if cpu.threads == 1 else max(_TASKS, 4 * cpu.threads)
    return max(1, min(tiles, max(shared, size // TASK_BYTES)))


@dataclass(frozen=True, slots=True)
class Rows:
    """x[count, inputs] and how its rows go; ``turned``: group → [groups, inputs, group] of the wide ones."""

    b: Body
    x: Any
    count: Any
    sizes: Sequence[int]
    turned: Mapping[int, Any]

    @classmethod
    def of(cls, b: Body, x: Any, rows: int | None, count: Any, inputs: int, cpu: Cpu) -> Rows:
        """Writes the loops that lay an input of all rows of a group in one place, for wide groups."""
        found = sizes(rows, cpu)
        turned = {}
        done: Any = 0
        for group in found:
            turns = (count - done) // group
            if group > 1 and (group == found[0] or group in SQUARES):
                turned[group] = _turned(b, x, (done, turns), inputs, group, cpu)
            done = done + turns * group
        return cls(b, x, count, found, turned)

    def each(self, write: Callable[[Any, int, Input], None]) -> None:
        """``write(first row, rows, input)`` in a loop for each size of group."""
        done: Any = 0
        for group in self.sizes:
            turns = (self.count - done) // group
            with self.b.serial(turns) as i:
                write(done + i * group, group, self._input(i, done, group))
            done = done + turns * group

    def _input(self, i: Any, first: Any, group: int) -> Input:
        if group in self.turned:
            return lambda g, k: self.turned[group][i, k, g]
        return lambda g, k: self.x[first + i * group + g, k]


def _turned(b: Body, x: Any, rows: tuple[Any, Any], inputs: int, group: int, cpu: Cpu) -> Any:
    """[groups, inputs, group]; ``rows``: the first one, and how many groups there are."""
    first, turns = rows
    made = b.scratch(turns, inputs, group)
    squares = inputs // SIDE if group in SQUARES and cpu.lanes == SIDE else 0
    with b.parallel(turns) as i:
        with b.serial(squares) as k:
            transpose(b, x, first + i * group, k * SIDE, made, (i,), group)
        with b.span(squares * SIDE, inputs) as k:
            for g in range(group):
                b.store(made, x[first + i * group + g, k], i, k, g)
    return made


def epilogue(
    b: Body,
    y: Any,
    bias: Any,
    follow: Callable[[Any], Any] | None,
    row: Any,
    column: Any,
    shape: tuple[int, int],
) -> None:
    """``y = follow(y + bias)`` of ``shape`` rows and columns from ``row`` and ``column`` on, in place."""
    if bias is None and follow is None:
        return
    rows, columns = shape
    with b.serial(rows) as g, b.vector(columns) as v:
        total = y[row + g, column + v]
        total = total if bias is None else total + bias[column + v]
        b.store(y, total if follow is None else follow(total), row + g, column + v)


def whole_and_last(b: Body, tile: Any, outputs: int, width: int, write: Callable[[int], None]) -> None:
    """``write(lanes)`` for tiles of ``width`` outputs, with fewer for the last where they do not divide."""
    full, rest = divmod(outputs, width)
    if not rest:
        write(width)
        return
    with b.ir.If(tile < full):
        with b.ir.Then():
            write(width)
        with b.ir.Else():
            write(rest)
