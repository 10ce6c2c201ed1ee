"""The choice of one option for each item: least cost with the sum of errors within a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

STEPS = 1 << 14
"""Into how many steps the bound is cut, at least; errors are rounded up to steps."""


def cheapest(errors: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], bound: float) -> list[int]:
    """Index of the option of each item: the sum of ``errors`` at most ``bound``, that of ``costs`` least.

    Exact up to the rounding of errors, by dynamic programming. Where not even the least errors fit, the
    options of least error are taken.

    >>> cheapest([[0.0, 1.0, 4.0], [0.0, 1.0, 9.0]], [[9.0, 5.0, 1.0], [9.0, 6.0, 1.0]], 5.5)
    [2, 1]
    """
    least = [list(options).index(min(options)) for options in errors]
    if bound <= 0 or sum(options[i] for options, i in zip(errors, least, strict=True)) >= bound:
        return least
    steps = max(STEPS, 16 * len(errors))
    best = np.zeros(steps + 1)  # least cost of the items so far, by the steps they may use
    taken: list[np.ndarray[tuple[int], np.dtype[np.int8]]] = []
    for options, prices in zip(errors, costs, strict=True):
        reached = np.full(steps + 1, np.inf)
        chosen = np.full(steps + 1, -1, np.int8)
        for index, (error, price) in enumerate(zip(options, prices, strict=True)):
            size = error / bound * steps
            if not size <= steps:
                continue
            size = math.ceil(size)
            total = np.full(steps + 1, np.inf)
            total[size:] = best[: steps + 1 - size] + price
            better = total < reached
            reached[better] = total[better]
            chosen[better] = index
        taken.append(chosen)
        best = reached
    if not np.isfinite(best[steps]):
        return least
    left, picked = steps, []
    for options, chosen in zip(reversed(errors), reversed(taken), strict=True):
        index = int(chosen[left])
        picked.append(index)
        left -= math.ceil(options[index] / bound * steps)
    return picked[::-1]
