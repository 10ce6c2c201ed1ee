"""Factors of channels that make rows of activations easy to round by one scale, moved into the weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...compiler.reference import Array

EXPONENTS = (0.25, 0.5, 0.75, 1.0)
WORTH = 0.7
"""What is left of the expected error at most: a pass over the activations is not free."""

_PEAK = 9.0
"""Square of a row's greatest value over its root mean square, which is what moments tell."""


def row_factors(channels: Array, weights: Sequence[Array]) -> Array | None:
    """What each channel is divided by before rounding, its weights multiplied; None if that does not pay.

    ``channels``: float32[columns], root mean squares; ``weights``: float32[rows, columns] each, all that read
    the activation. Rounding's variance is a twelfth of a squared step: a row's step goes with its greatest
    channel and acts on all weights, a weight's step with its greatest column and acts on all channels. The
    exponent of SmoothQuant (arXiv 2211.10438) is the one at which the sum of both is least.
    """
    size = np.maximum(channels.astype(np.float64), 1e-9)
    power = np.sum([np.square(w, dtype=np.float64).sum(0) for w in weights], 0)
    best = _expected(size, np.ones_like(size), power, weights) * WORTH
    found: Array | None = None
    for exponent in EXPONENTS:
        raw = size**exponent
        factors = np.clip(raw / np.exp(np.log(raw).mean()), 1e-2, 1e2)
        error = _expected(size, factors, power, weights)
        if error < best:
            best, found = error, factors.astype(np.float32)
    return found


def _expected(size: Array, factors: Array, power: Array, weights: Sequence[Array]) -> float:
    """The error of both roundings, up to a constant."""
    activation = _PEAK * float(np.max(size / factors)) ** 2 * float(factors**2 @ power)
    greatest = sum(float(np.square(np.abs(w * factors).max(1, initial=0)).sum()) for w in weights)
    return activation + greatest * float(np.square(size / factors).sum())
