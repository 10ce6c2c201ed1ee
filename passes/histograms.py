"""From where activations lay to one 8-bit scale: by extremes, a percentile, or least divergence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.errors import OptionError
from ..compiler.reference import Array

BINS = 2048
"""Of a histogram; twice as many while it grows."""

RANGES = ("minmax", "percentile", "entropy")
_LEVELS = 256


@dataclass(frozen=True, slots=True)
class Scale:
    """``x ≈ (code - zero) * step`` with codes from 0 to 255."""

    step: float
    zero: int

    @classmethod
    def of(cls, low: float, high: float) -> Scale:
        """Of the range from ``low`` to ``high``, widened to hold zero, which gets a code of its own."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = max((high - low) / 255, 1e-30)
        return cls(step, int(np.clip(round(-low / step), 0, 255)))


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often an activation was where: ``counts`` of even bins from ``low`` to ``high``, both seen."""

    low: float
    high: float
    counts: Array

    @classmethod
    def of(cls, array: Array, earlier: Histogram | None = None) -> Histogram | None:
        """Of ``array`` joined with ``earlier``; infinities and NaN are left out. None if nothing is left."""
        flat = array[np.isfinite(array)]
        if not flat.size:
            return earlier
        low, high = float(flat.min()), float(flat.max())
        if earlier is not None:
            low, high = min(low, earlier.low), max(high, earlier.high)
        if low == high:
            found = np.zeros(BINS, np.int64)
            found[0] = flat.size
        else:
            found = np.histogram(flat, BINS, (low, high))[0].astype(np.int64)
        if earlier is not None:
            found = found + earlier._within(low, high)
        return cls(low, high, found)

    def _within(self, low: float, high: float) -> Array:
        """The counts in the bins of a wider range, each bin at its middle."""
        if high == low:
            return self.counts
        width = (self.high - self.low) / BINS
        middles = self.low + (np.arange(BINS) + 0.5) * width
        at = np.clip(((middles - low) * (BINS / (high - low))).astype(np.int64), 0, BINS - 1)
        return np.bincount(at, self.counts, BINS).astype(np.int64)

    def scale(self, chosen: str, percentile: float = 99.99) -> Scale:
        """By one of RANGES. ``percentile``: share of values, in percent, that a range leaves unclipped."""
        if chosen == "minmax" or self.low == self.high:
            return Scale.of(self.low, self.high)
        if chosen == "percentile":
            return Scale.of(*self.inner(percentile))
        return Scale.of(*self.least_divergence())

    def inner(self, percentile: float) -> tuple[float, float]:
        """The range that leaves half of ``100 - percentile`` per cent outside on either side."""
        total = np.cumsum(self.counts)
        tail = total[-1] * (1 - percentile / 100) / 2
        first = int(np.searchsorted(total, tail, side="right"))
        last = int(np.searchsorted(total, total[-1] - tail, side="left"))
        width = (self.high - self.low) / BINS
        return self.low + first * width, self.low + (last + 1) * width

    def _without_zeros(self) -> Array:
        """The counts, with no more in the bin that zero is in than in the fuller of those beside it."""
        counts = self.counts.copy()
        at = int(-self.low / (self.high - self.low) * BINS)
        if 0 <= at < BINS:
            beside = np.concatenate([counts[max(0, at - 1) : at], counts[at + 1 : at + 2]])
            counts[at] = min(counts[at], beside.max())
        return counts

    def least_divergence(self) -> tuple[float, float]:
        """The range whose 256 levels tell least wrong about the distribution, by Kullback-Leibler divergence.

        Candidates reach ever further from zero, on both sides as far as there are values; what lies outside
        counts to the last bin. Zeros, which every range gives exactly, count as often as what lies beside
        them: a ReLU makes most values zero. Source: TensorRT's entropy calibration (Migacz, GTC 2017).
        """
        zero = int(np.clip(round(-self.low / (self.high - self.low) * BINS), 0, BINS))
        counts = self._without_zeros()
        best = np.inf, (self.low, self.high)
        width = (self.high - self.low) / BINS
        for reach in np.linspace(_LEVELS // 2, max(zero, BINS - zero), 96).astype(int):
            first, last = max(0, zero - int(reach)), min(BINS, zero + int(reach))
            if last - first < _LEVELS:
                continue
            found = divergence(counts, first, last)
            if found < best[0]:
                best = found, (self.low + first * width, self.low + last * width)
        return best[1]


def divergence(counts: Array, first: int, last: int) -> float:
    """KL of the counts, clipped to bins ``first`` to ``last``, from what 256 levels make of them, in nats."""
    inside = counts[first:last].astype(np.float64)
    clipped = inside.copy()
    clipped[0] += counts[:first].sum()
    clipped[-1] += counts[last:].sum()
    edges = np.linspace(0, len(inside), _LEVELS + 1).astype(np.int64)
    level = np.repeat(np.arange(_LEVELS), np.diff(edges))
    seen = inside > 0
    total = np.bincount(level, inside, _LEVELS)
    filled = np.bincount(level, seen, _LEVELS)
    spread = np.where(seen, (total / np.maximum(filled, 1))[level], 0.0)
    p, q = clipped / max(clipped.sum(), 1), spread / max(spread.sum(), 1)
    here = p > 0
    # a bin that only clipped values fell into has no mass in q: a small one keeps the divergence finite
    return float(np.sum(p[here] * np.log(p[here] / np.maximum(q[here], 1e-12))))


@dataclass(frozen=True, slots=True)
class RangeRule:
    """How a range becomes a scale: one of RANGES and the percentile."""

    range: str = "minmax"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.range not in RANGES:
            raise OptionError("range", f"{self.range!r} is not offered", f"one of {', '.join(RANGES)}")
        if not 50 < self.percentile <= 100:
            raise OptionError("percentile", f"{self.percentile:g} is out of range", "give one such as 99.99")

    def scale(self, histogram: Histogram) -> Scale:
        """The scale of what ``histogram`` was taken of."""
        return histogram.scale(self.range, self.percentile)
