"""Patterns of zeros: which elements of a weight stay, given what each is worth."""

from __future__ import annotations

import numpy as np

from ...compiler.reference import Array

PATTERNS = ("unstructured", "2:4", "block")
"""Zeros anywhere; two of any four neighbours in a row; whole blocks of ``TILE`` outputs by one input."""

TILE = 16
"""Outputs of a block: rows of a tile of the native kernels."""


def removed(sparsity: float, count: int) -> int:
    """How many of ``count`` elements or blocks go."""
    return round(sparsity * count)


def block_sums(scores: Array) -> Array:
    """Sums over the blocks of ``scores`` [rows, columns]: [tiles, columns]; the last may have fewer rows."""
    sums: Array = np.add.reduceat(scores, np.arange(0, len(scores), TILE), axis=0)
    return sums


def of_blocks(blocks: Array, rows: int) -> Array:
    """What holds for blocks, [tiles, columns], as it holds for their elements: [rows, columns]."""
    return blocks.repeat(TILE, 0)[:rows]


def kept(scores: Array, pattern: str, sparsity: float, *, per_row: bool = False) -> Array:
    """bool[rows, columns]: the elements of the greatest scores, in a pattern.

    scores: float[rows, columns], additive (squares): a block is worth the sum of its elements. ``per_row``:
    every row, or tile of blocks, loses the same share; else they are compared over the whole weight. Of
    ``2:4`` two of every four columns stay whatever ``sparsity`` is; columns are a multiple of four.

    >>> kept(np.float32([[1, 9, 4, 16], [4, 1, 1, 0]]), "2:4", 0.5).astype(int).tolist()
    [[0, 1, 0, 1], [1, 0, 1, 0]]
    """
    rows, columns = scores.shape
    if pattern == "block":
        return of_blocks(kept(block_sums(scores), "unstructured", sparsity, per_row=per_row), rows)
    if pattern == "2:4":
        groups = scores.reshape(rows, columns // 4, 4)
        rank = np.argsort(np.argsort(groups, axis=-1), axis=-1)
        return np.asarray(rank >= 2).reshape(rows, columns)
    if not per_row:
        return least_removed(scores.reshape(1, -1), removed(sparsity, scores.size)).reshape(rows, columns)
    return least_removed(scores, removed(sparsity, columns))


def least_removed(scores: Array, count: int) -> Array:
    """bool of ``scores`` [rows, columns]: all but the ``count`` least of each row."""
    mask = np.ones(scores.shape, np.bool_)
    if count:
        least = np.argpartition(scores, count - 1, axis=1)[:, :count]
        np.put_along_axis(mask, least, False, axis=1)
    return mask


def used(weight: Array, pattern: str) -> float:
    """The density: share of a weight's elements, or of its blocks of pattern ``block``, that is not zero."""
    filled = weight != 0
    if pattern == "block":
        filled = np.logical_or.reduceat(filled, np.arange(0, len(filled), TILE), axis=0)
    return float(filled.mean())
