"""Histograms of activations: joined runs, percentiles, and entropy against a slow reference."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from miaotui.passes.histograms import BINS, Histogram, Scale, divergence

RNG = np.random.default_rng(3)


def histogram(*arrays: np.ndarray) -> Histogram:  # type: ignore[type-arg]
    found = None
    for array in arrays:
        found = Histogram.of(np.asarray(array, np.float32), found)
    assert found is not None
    return found


def test_runs_join_into_one() -> None:
    parts = [RNG.standard_normal(1000), RNG.standard_normal(500) * 4, RNG.standard_normal(10)]
    found, whole = histogram(*parts), histogram(np.concatenate(parts))
    assert (found.low, found.high) == (whole.low, whole.high)
    assert found.counts.sum() == 1510
    assert np.abs(np.cumsum(found.counts) - np.cumsum(whole.counts)).max() < 30  # a bin's middle may move


def test_nan_and_infinities_are_left_out() -> None:
    found = histogram(np.array([np.nan, np.inf, -1.0, 2.0]))
    assert (found.low, found.high, found.counts.sum()) == (-1.0, 2.0, 2)
    assert Histogram.of(np.array([np.nan], np.float32)) is None


def test_zero_has_a_code_and_constants_a_scale() -> None:
    assert Scale.of(1.0, 5.0) == Scale(5 / 255, 0)
    assert Scale.of(-5.0, -1.0) == Scale(5 / 255, 255)
    assert histogram(np.full(9, 3.0)).scale("entropy") == Scale(3 / 255, 0)
    assert histogram(np.zeros(9)).scale("percentile").zero == 0


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
def test_percentile_leaves_that_much_outside(percentile: float) -> None:
    values = RNG.standard_normal(20000).astype(np.float32)
    low, high = histogram(values).inner(percentile)
    tail = (100 - percentile) / 2
    width = (values.max() - values.min()) / BINS
    share = [100 * np.mean(values < edge) for edge in (low, low + 2 * width, high - 2 * width, high)]
    assert share[0] <= tail <= share[1]
    assert share[2] <= 100 - tail <= share[3]


def slow_divergence(counts: list[int], first: int, last: int) -> float:
    """The definition, a bin at a time: clip, spread each of 256 levels over its bins with values, KL."""
    p = [float(c) for c in counts[first:last]]
    levels = [int(k * len(p) / 256 + 1e-9) for k in range(257)]
    q = [0.0] * len(p)
    for a, b in itertools.pairwise(levels):
        filled = [i for i in range(a, b) if p[i] > 0]
        for i in filled:
            q[i] = sum(p[a:b]) / len(filled)
    p[0] += sum(counts[:first])
    p[-1] += sum(counts[last:])
    total, spread = sum(p), sum(q)
    return sum(
        x / total * math.log((x / total) / max(y / spread, 1e-12)) for x, y in zip(p, q, strict=True) if x > 0
    )


@pytest.mark.parametrize(("first", "last"), [(0, BINS), (100, 1500), (900, 1200), (0, 256)])
def test_divergence_is_the_slow_one(first: int, last: int) -> None:
    counts = histogram(RNG.standard_t(3, 30000)).counts
    assert divergence(counts, first, last) == pytest.approx(slow_divergence(counts.tolist(), first, last))


def test_entropy_clips_a_long_tail_but_not_an_even_spread() -> None:
    tailed = np.concatenate([RNG.standard_normal(100000), [80.0]])
    _, high = histogram(tailed).least_divergence()
    assert high < 40, "one value of 80 takes the levels of a hundred thousand"
    assert high > 3
    even = histogram(RNG.uniform(-1, 1, 100000)).least_divergence()
    assert even[1] - even[0] > 1.8


def test_zeros_of_a_relu_do_not_narrow_the_range_of_least_divergence() -> None:
    values = np.maximum(np.random.default_rng(0).standard_normal(200_000), 0).astype(np.float32)
    histogram = Histogram.of(values)
    assert histogram is not None
    low, high = histogram.least_divergence()
    assert low == 0
    assert high > np.quantile(values, 0.9999)
