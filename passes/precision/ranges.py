"""Measured activation ranges: the least and greatest value of every tensor seen, over any number of runs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...compiler.reference import Array

Ranges = Mapping[str, tuple[float, float]]


def ranges_of(arrays: Mapping[str, Array], earlier: Ranges | None = None) -> dict[str, tuple[float, float]]:
    """(least, greatest) of every float array by name, joined with ``earlier`` runs; NaN is left out.

    >>> ranges_of({"x": np.float32([1, -2])}, {"x": (0.0, 5.0)})
    {'x': (-2.0, 5.0)}
    """
    found = dict(earlier or {})
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating) or array.size == 0 or np.isnan(array).all():
            continue
        low, high = float(np.nanmin(array)), float(np.nanmax(array))
        if name in found:
            low, high = min(low, found[name][0]), max(high, found[name][1])
        found[name] = (low, high)
    return found
