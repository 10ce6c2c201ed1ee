"""SparseGPT: weights removed column by column, what is left moved so that outputs change least."""

from __future__ import annotations

import numpy as np

from ...compiler.reference import Array
from .patterns import block_sums, kept, least_removed, of_blocks, removed

DAMPING = 0.01
"""Share of the mean channel's power that is added to every channel's."""

_COLUMNS = 128
"""Columns whose elements are compared with each other, and updated together."""


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
    w = np.array(weight, np.float32)
    columns = w.shape[1]
    mask = np.ones(w.shape, np.bool_)
    scale = 1 / np.diagonal(factor)
    for begin in range(0, columns, _COLUMNS):
        end = min(columns, begin + _COLUMNS)
        if pattern != "2:4":
            scores = np.square(w[:, begin:end] * scale[begin:end])
            mask[:, begin:end] = _chosen(scores, pattern, sparsity, begin)
        part, own = w[:, begin:end], factor[begin:end, begin:end]
        errors = np.zeros(part.shape, np.float32)
        for j in range(end - begin):
            if pattern == "2:4" and j % 4 == 0:
                at = slice(begin + j, begin + j + 4)
                mask[:, at] = kept(np.square(w[:, at] * scale[at]), pattern, 0.5)
            errors[:, j] = np.where(mask[:, begin + j], 0, part[:, j]) * scale[begin + j]
            part[:, j:] -= np.outer(errors[:, j], own[j, j:])
        w[:, end:] -= errors @ factor[begin:end, end:]
    w *= mask
    return w, mask


def _chosen(scores: Array, pattern: str, sparsity: float, begin: int) -> Array:
    """What is kept of a stretch that begins at column ``begin``: the counts of all stretches add up."""
    rows, columns = scores.shape
    worth = block_sums(scores) if pattern == "block" else scores
    lines = len(worth)
    count = removed(sparsity, lines * (begin + columns)) - removed(sparsity, lines * begin)
    chosen = least_removed(worth.reshape(1, -1), count).reshape(worth.shape)
    return of_blocks(chosen, rows) if pattern == "block" else chosen
