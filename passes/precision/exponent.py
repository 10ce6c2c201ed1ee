"""How far to even out channels: the exponent with the least output error of rounded weights and inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...compiler.reference import Array
from ..moments import Moment
from .grids import Rounding, spanning

EXPONENTS = tuple(step / 8 for step in range(9))

_ROWS = 192
"""Rows of each weight that exponents are compared on."""
_BLOCK = 32
"""Columns of a block, of weights and activations."""
_PEAK = 2.5
"""A block's greatest activation over its greatest root mean square, about."""


def best_exponent(
    weights: Sequence[Array], moment: Moment, bits: int, factors: Callable[[float], Array]
) -> float:
    """The one of EXPONENTS whose ``factors`` give the least error of products with ``weights``.

    weights: float32[rows, columns] each. Weights are rounded to ``bits`` by their range, in the rows that are
    compared; activations in 8 bits by the greatest of each block, which is taken from their second moments.
    """
    some = [np.asarray(w[:: -(-len(w) // _ROWS)], np.float32) for w in weights]
    shares = [len(w) / len(s) for w, s in zip(weights, some, strict=True)]
    errors = [_error(some, shares, moment, bits, factors(alpha)) for alpha in EXPONENTS]
    return EXPONENTS[int(np.argmin(errors))]


def _error(
    weights: Sequence[Array], shares: Sequence[float], moment: Moment, bits: int, factors: Array
) -> float:
    columns, wide = len(factors), factors.astype(np.float32)
    block = min(_BLOCK, columns & -columns)
    rounding = Rounding(bits, block, "symmetric" if bits == 8 else "asymmetric")
    size = (moment.channels / wide).reshape(-1, block).max(-1)
    step = np.repeat(np.square(_PEAK * size / 127) / 12, block)
    total = 0.0
    for weight, share in zip(weights, shares, strict=True):
        scaled = weight * wide
        parts = scaled.reshape(-1, block)
        grid = spanning(parts, rounding)
        change = (grid.values(grid.codes(parts, rounding)).reshape(weight.shape) - scaled) / wide
        total += share * (moment.error(change) + float((np.square(scaled) * step).sum(dtype=np.float64)))
    return total
