"""Which columns of a weight matter least, alone or with the others making up for them; and how these do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...compiler.reference import Array

DAMPING = 0.01
"""Added to a moment's diagonal, as a share of its mean."""

ROUNDS = 32
"""In how many steps columns go at most: between two the others are corrected and weighed anew."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What is to go: ``count`` units of each of ``pools``. ``step``: units that go at a time."""

    pools: Sequence[Array]
    count: int
    step: int = 1


def greatest(scores: Array, quota: Quota) -> Array:
    """bool[units]: all but the least of each pool; of equal ones the first stay."""
    kept = np.ones(len(scores), np.bool_)
    for pool in quota.pools:
        order = np.argsort(-scores[pool], kind="stable")
        kept[pool[order[len(pool) - quota.count :]]] = False
    return kept


def moment_scores(weight: Array, units: Array, matrix: Array) -> Array:
    """float64[units]: mean squared output error that comes of dropping each unit by itself.

    weight: float[rows, columns]. units: int[columns]. matrix: float[columns, columns], E[x xᵀ].
    """
    scores = np.zeros(int(units.max()) + 1)
    for unit in range(len(scores)):
        at = np.flatnonzero(units == unit)
        part = weight[:, at].astype(np.float64)
        scores[unit] = np.einsum("ij,jk,ik->", part, matrix[np.ix_(at, at)], part, optimize=True)
    return scores


def surgeon(weight: Array, units: Array, matrix: Array, quota: Quota) -> Array:
    """bool[units]: what stays if after every step what is left makes up for what has gone as well as it can.

    A unit is worth the error that dropping it leaves then: trace(W_u (M⁻¹_uu)⁻¹ W_uᵀ), W being the weight
    corrected so far and M⁻¹ the inverse of the moment of what is left. Sources: Optimal Brain Surgeon,
    Hassibi and Stork 1993; ZipLM for structures, arXiv 2302.04089. Shapes as in ``moment_scores``.
    """
    kept = np.ones(int(units.max()) + 1, np.bool_)
    members = [np.flatnonzero(units == unit) for unit in range(len(kept))]
    left = weight.astype(np.float64)
    inverse = np.linalg.inv(damped(matrix))
    total = quota.count * len(quota.pools)
    step = max(quota.step, -(-total // ROUNDS)) if len(quota.pools) == 1 else 1
    while (gone := int((~kept).sum())) < total:
        open_ = np.concatenate([p[kept[p]] for p in quota.pools if (~kept[p]).sum() < quota.count])
        scores = _costs(left, inverse, [members[unit] for unit in open_])
        order = len(open_) - 1 - np.argsort(scores[::-1], kind="stable")  # of equal ones the last goes
        least = open_[order[: min(step, total - gone)]]
        kept[least] = False
        at = np.concatenate([members[unit] for unit in least])
        pulled = np.linalg.solve(inverse[np.ix_(at, at)], inverse[at])
        left -= left[:, at] @ pulled
        inverse -= inverse[:, at] @ pulled
        left[:, at] = 0
        inverse[at] = inverse[:, at] = 0
        inverse[at, at] = 1
    return kept


def _costs(weight: Array, inverse: Array, members: Sequence[Array]) -> Array:
    if all(len(at) == 1 for at in members):
        at = np.concatenate(members)
        return np.asarray(np.square(weight[:, at]).sum(0) / np.diagonal(inverse)[at])
    parts = ((weight[:, at], inverse[np.ix_(at, at)]) for at in members)
    return np.array([np.einsum("ij,ji->", part, np.linalg.solve(block, part.T)) for part, block in parts])


def corrected(weight: Array, matrix: Array, kept: Array) -> Array:
    """float32[rows, kept]: the columns ``kept`` such that they give what all gave, in least squares.

    W·M[:, K]·M[K, K]⁻¹, for the damped moment M of all columns.
    """
    moment = damped(matrix)
    right = weight.astype(np.float64) @ moment[:, kept]
    return np.linalg.solve(moment[np.ix_(kept, kept)], right.T).T.astype(np.float32)


def damped(matrix: Array, share: float = DAMPING) -> Array:
    """float64: a moment with ``share`` of its mean added to its diagonal, so that it has an inverse."""
    found: Array = matrix.astype(np.float64)
    mean = float(np.diagonal(found).mean())
    found[np.diag_indices(len(found))] += share * mean if mean > 0 else 1.0
    return found
