"""Patterns of zeros and SparseGPT: exact counts, whole blocks, and the slow form of the same algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miaotui.passes.moments import Moment
from miaotui.passes.sparsity.patterns import TILE, block_sums, kept, used
from miaotui.passes.sparsity.sparsegpt import DAMPING, inverse_factor, sparsegpt

Array = np.ndarray[Any, Any]


def correlated(columns: int, seed: int = 0, rows: int = 600) -> Moment:
    """Of inputs whose channels differ in size and go together."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((columns, columns)) / np.sqrt(columns) + 0.2 * rng.standard_normal(columns)
    x = (rng.standard_normal((rows, columns)) @ mix * rng.uniform(0.2, 3, columns)).astype(np.float32)
    return Moment(x.T @ x / rows, rows)


def weight(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def tiles(mask: Array) -> list[Array]:
    return [mask[begin : begin + TILE] for begin in range(0, len(mask), TILE)]


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 0.99), st.booleans())
@settings(max_examples=60, deadline=None)
def test_as_many_elements_go_as_asked(rows: int, columns: int, share: float, per_row: bool) -> None:
    mask = kept(np.square(weight(rows, columns)), "unstructured", share, per_row=per_row)
    gone = (~mask).sum(1)
    if per_row:
        assert (gone == round(share * columns)).all()
    else:
        assert abs(gone.sum() - share * rows * columns) < 0.5 + 1e-9, "the nearest, whatever half rounds to"


def test_the_greatest_elements_stay() -> None:
    w = weight(8, 12)
    mask = kept(np.square(w), "unstructured", 0.25)
    assert np.abs(w[~mask]).max() < np.abs(w[mask]).min()


@given(st.integers(1, 40), st.integers(1, 10))
def test_two_of_four_neighbours_stay_and_they_are_the_greatest(rows: int, groups: int) -> None:
    w = np.abs(weight(rows, 4 * groups)).reshape(rows, groups, 4)
    mask = kept(w.reshape(rows, -1), "2:4", 0.5).reshape(w.shape)
    assert (mask.sum(-1) == 2).all()
    assert (np.where(mask, w, np.inf).min(-1) > np.where(mask, 0, w).max(-1)).all()


@given(st.integers(1, 50), st.integers(1, 20), st.floats(0.05, 0.95), st.booleans())
@settings(max_examples=60, deadline=None)
def test_blocks_of_sixteen_rows_go_whole(rows: int, columns: int, share: float, per_row: bool) -> None:
    mask = kept(np.square(weight(rows, columns)), "block", share, per_row=per_row)
    assert all((tile == tile[0]).all() for tile in tiles(mask))
    gone = np.array([(~tile[0]).sum() for tile in tiles(mask)])
    if per_row:
        assert (gone == round(share * columns)).all()
    else:
        assert gone.sum() == round(share * len(gone) * columns)


def test_a_block_is_worth_the_sum_of_its_elements() -> None:
    scores = np.square(weight(21, 5))
    sums = block_sums(scores)
    np.testing.assert_allclose(sums, [scores[:16].sum(0), scores[16:].sum(0)], rtol=1e-6)
    mask = kept(scores, "block", 0.5)
    assert sums[~mask[::16]].max() < sums[mask[::16]].min()


def test_density_counts_elements_or_blocks_that_are_used() -> None:
    w = np.zeros((20, 4), np.float32)
    w[3, 1] = w[17, 1] = w[18, 2] = 1
    assert used(w, "unstructured") == 3 / 80
    assert used(w, "block") == 3 / 8


def slow(w: Array, moment: Array, pattern: str, sparsity: float, stretch: int = 128) -> Array:
    """SparseGPT with an explicit inverse for every column, as the paper's equations have it."""
    w = w.astype(np.float64)
    rows, columns = w.shape
    h = moment.astype(np.float64) + DAMPING * np.diagonal(moment).mean() * np.eye(columns)
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(columns)]
    cost = np.array([inverse[0, 0] for inverse in inverses])
    mask = np.ones(w.shape, bool)
    gone = 0
    for j in range(columns):
        if pattern == "2:4" and j % 4 == 0:
            scores = w[:, j : j + 4] ** 2 / cost[j : j + 4]
            mask[:, j : j + 4] = scores >= np.sort(scores, 1)[:, 2:3]
        if pattern != "2:4" and j % stretch == 0:
            scores = w[:, j : j + stretch] ** 2 / cost[j : j + stretch]
            if pattern == "block":
                scores = np.stack([scores[i : i + TILE].sum(0) for i in range(0, rows, TILE)])
            wanted = round(sparsity * len(scores) * min(columns, j + stretch)) - gone
            gone += wanted
            keep = scores > np.sort(scores.ravel())[wanted - 1]
            mask[:, j : j + stretch] = keep.repeat(TILE, 0)[:rows] if pattern == "block" else keep
        for row in np.flatnonzero(~mask[:, j]):
            inverse = inverses[j]
            w[row, j:] -= w[row, j] / inverse[0, 0] * inverse[0]
        w[~mask[:, j], j] = 0
    return w


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block"])
@pytest.mark.parametrize(("rows", "columns"), [(37, 140), (16, 60)])
def test_sparsegpt_equals_its_slow_form(pattern: str, rows: int, columns: int) -> None:
    w, moment = weight(rows, columns), correlated(columns)
    made, mask = sparsegpt(w, inverse_factor(moment.matrix), pattern, 0.5)
    wanted = slow(w, moment.matrix, pattern, 0.5)
    assert np.array_equal(made != 0, mask)
    assert np.array_equal(mask, wanted != 0)
    assert np.abs(made - wanted).max() < 2e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block"])
def test_sparsegpt_costs_a_fraction_of_magnitude_where_inputs_go_together(pattern: str, share: float) -> None:
    w, moment = weight(48, 200), correlated(200)
    made, mask = sparsegpt(w, inverse_factor(moment.matrix), pattern, share)
    by_size = w * kept(np.square(w), pattern, share)
    by_input = w * kept(np.square(w * moment.channels), pattern, share, per_row=True)
    assert moment.error(made - w) < 0.5 * moment.error(by_size - w)
    assert moment.error(made - w) < 0.5 * moment.error(by_input - w)
    gone = 0.5 if pattern == "2:4" else share
    assert abs(mask.mean() - (1 - gone)) < 1e-3


def test_inverse_factor_is_of_the_inverse_of_what_is_left() -> None:
    matrix = correlated(300).matrix
    factor = inverse_factor(matrix)
    damped = matrix.astype(np.float64) + DAMPING * np.diagonal(matrix).mean() * np.eye(300)
    inverse = np.linalg.inv(damped)
    assert np.abs(factor.T.astype(np.float64) @ factor - inverse).max() < 1e-5 * np.abs(inverse).max()
    assert not np.tril(factor, -1).any()
    for j in (0, 131, 299):
        left = np.linalg.inv(damped[j:, j:])[0, 0]
        assert abs(factor[j, j] ** 2 - left) < 1e-5 * left


def test_channels_that_were_never_used_go_first() -> None:
    moment = correlated(64).matrix.copy()
    moment[5] = moment[:, 5] = 0
    made, mask = sparsegpt(weight(32, 64), inverse_factor(moment), "block", 0.1)
    assert not mask[:, 5].any()
    assert np.isfinite(made).all()


def test_a_moment_of_zeros_prunes_by_size() -> None:
    w = weight(16, 32)
    made, mask = sparsegpt(w, inverse_factor(np.zeros((32, 32), np.float32)), "unstructured", 0.5)
    assert np.array_equal(mask, kept(np.square(w), "unstructured", 0.5))
    assert np.array_equal(made, w * mask)
