"""Squares of numbers turned in registers: rows are read, columns are stored."""

from __future__ import annotations

from typing import Any

from .build import Body

SIDE = 16


def transpose(b: Body, source: Any, row: Any, column: Any, target: Any, place: Any, rows: int) -> None:
    """``target[*place, column + c, r] = source[row + r, column + c]`` for ``rows`` r and 16 c.

    ``rows``: a power of two up to 16. In each step halves of vectors change places with those of the vector
    that is as far away as the halves are.
    """
    from tvm import tirx

    held = b.local(SIDE, SIDE)
    for r in range(SIDE):
        b.put(held, b.load(source, SIDE, row + r % rows, column), SIDE, r, 0)
    distance = SIDE // 2
    while distance:
        taken, held = held, b.local(SIDE, SIDE)
        for r in range(SIDE):
            other = r ^ distance
            lanes = [
                lane if lane & distance == r & distance else SIDE + (lane ^ distance) for lane in range(SIDE)
            ]
            pair = [b.load(taken, SIDE, r, 0), b.load(taken, SIDE, other, 0)]
            b.put(held, tirx.Shuffle(pair, lanes), SIDE, r, 0)
        distance //= 2
    for c in range(SIDE):
        found = b.load(held, rows, c, 0)
        b.put(target, found, rows, *place, column + c, 0)
