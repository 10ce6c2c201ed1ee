"""SparseGPT: weights removed column by column, what is left moved so that outputs change least."""

from __future__ import annotations

import numpy as np

from ...compiler.reference import Array
from .patterns import block_sums, kept, least_removed, of_blocks, removed

DAMPING = 0.01
"""Share of the mean channel's power that is added to every channel's."""

_COLUMNS = 128
"""Columns whose elements are compared with each other, and updated together."""

_FEW = 16
"""Columns that are removed one by one."""


def inverse_factor(moment: Array) -> Array:
    """float32[columns, columns]: the upper U with UᵀU the inverse of the damped ``moment`` E[x·xᵀ].

    ``U[j, j]² = inverse(moment[j:, j:])[0, 0]``: all that removing column j, when those before it are
    done, asks. Raises: numpy.linalg.LinAlgError if the moment is not finite.
    """
    damped = moment.astype(np.float64)
    power = float(np.diagonal(damped).mean())
    damped[np.diag_indices_from(damped)] += DAMPING * power if power > 0 else 1.0
    # with the columns in reverse, the Cholesky factor is the inverse's own, inverted
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    return np.ascontiguousarray(_inverted(lower)[::-1, ::-1], np.float32)


def _inverted(lower: Array) -> Array:
    """The inverse of a lower triangular matrix, half by half: a sixth of a general inverse's work."""
    size = len(lower)
    if size <= _COLUMNS:
        return np.tril(np.linalg.inv(lower))
    half = size // 2
    found = np.zeros_like(lower)
    found[:half, :half] = _inverted(lower[:half, :half])
    found[half:, half:] = _inverted(lower[half:, half:])
    found[half:, :half] = -found[half:, half:] @ (lower[half:, :half] @ found[:half, :half])
    return found


def sparsegpt(weight: Array, factor: Array, pattern: str, sparsity: float) -> tuple[Array, Array]:
    """The pruned weight, float32[rows, columns], and which of its elements were kept.

    ``factor``: see ``inverse_factor``. In each stretch of columns the elements, or blocks of 16 outputs,
    whose removal costs least are chosen: w² / U[j, j]², over a block summed. Then, from left to right, each
    removed element's error is made up for by the columns to its right. Source: arXiv 2301.00774.
    """
    sweep = _Sweep(np.array(weight.T, np.float32, order="C"), factor, pattern, sparsity)
    for begin in range(0, len(factor), _COLUMNS):
        end = min(len(factor), begin + _COLUMNS)
        sweep.choose(begin, end)
        sweep.w[end:] -= factor[begin:end, end:].T @ sweep.remove(begin, end)
    sweep.w *= sweep.mask
    return np.ascontiguousarray(sweep.w.T), np.ascontiguousarray(sweep.mask.T)


class _Sweep:
    """A weight while it is pruned, column by column: ``w`` and ``mask`` are [columns, rows]."""

    __slots__ = ("factor", "mask", "pattern", "scale", "sparsity", "w")

    def __init__(self, w: Array, factor: Array, pattern: str, sparsity: float) -> None:
        self.w, self.factor, self.pattern, self.sparsity = w, factor, pattern, sparsity
        self.mask = np.ones(w.shape, np.bool_)
        self.scale = (1 / np.diagonal(factor))[:, None]

    def choose(self, begin: int, end: int) -> None:
        """What stays of a stretch; of ``2:4`` it is chosen when its four columns are reached."""
        if self.pattern != "2:4":
            scores = np.square(self.w[begin:end] * self.scale[begin:end])
            self.mask[begin:end] = _chosen(scores.T, self.pattern, self.sparsity, begin).T

    def remove(self, begin: int, end: int) -> Array:
        """Remove columns, the later ones of them made up for the earlier; the errors, [columns, rows].

        Half by half: most of the work is one product.
        """
        if end - begin > _FEW:
            middle = begin + (end - begin) // 2 // 4 * 4
            first = self.remove(begin, middle)
            self.w[middle:end] -= self.factor[begin:middle, middle:end].T @ first
            return np.concatenate([first, self.remove(middle, end)])
        errors = np.zeros((end - begin, self.w.shape[1]), np.float32)
        for index, j in enumerate(range(begin, end)):
            if self.pattern == "2:4" and j % 4 == 0:
                four = self.w[j : j + 4] * self.scale[j : j + 4]
                self.mask[j : j + 4] = kept(np.square(four).T, self.pattern, 0.5).T
            errors[index] = np.where(self.mask[j], 0, self.w[j]) * self.scale[j]
            self.w[j:end] -= np.outer(self.factor[j, j:end], errors[index])
        return errors


def _chosen(scores: Array, pattern: str, sparsity: float, begin: int) -> Array:
    """What is kept of a stretch that begins at column ``begin``: the counts of all stretches add up."""
    rows, columns = scores.shape
    worth = block_sums(scores) if pattern == "block" else scores
    lines = len(worth)
    count = removed(sparsity, lines * (begin + columns)) - removed(sparsity, lines * begin)
    chosen = least_removed(worth.reshape(1, -1), count).reshape(worth.shape)
    return of_blocks(chosen, rows) if pattern == "block" else chosen
