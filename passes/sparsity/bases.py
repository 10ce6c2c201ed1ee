"""Channels of attention heads in other bases: the few that carry most of the output, or of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...compiler.reference import Array
from .flow import NONE
from .importance import damped

FAINT = 1e-4
"""Damping of a head's moment, whose channels are few: enough for an inverse."""


def value_bases(matrix: Array, weight: Array, groups: Sequence[Sequence[int]], width: int) -> list[Array]:
    """float64[size, width] for each group of heads with a KV head: the directions of its values that stay.

    matrix: float[heads·size, heads·size], the moment of what the output projection reads; weight:
    float[outputs, heads·size], that projection. The directions are those of the best approximation of the
    group's share in the output by as few channels: M^-½ U, for the leading left singular vectors U of M^½ Wᵀ
    over the heads of the group; orthonormal. Source: activation-aware SVD, arXiv 2312.05821, head by head.
    """
    heads = sum(map(len, groups))
    size = weight.shape[1] // heads
    found = []
    for group in groups:
        at = [np.arange(head * size, (head + 1) * size) for head in group]
        root, inverse = _roots(sum((matrix[np.ix_(own, own)] for own in at), np.zeros((size, size))))
        parts = np.concatenate([root @ weight[:, own].T.astype(np.float64) for own in at], axis=1)
        values, vectors = np.linalg.eigh(parts @ parts.T)
        found.append(np.linalg.qr(inverse @ vectors[:, np.argsort(-values)[:width]])[0])
    return found


def score_bases(queries: Array, keys: Array, width: int) -> tuple[Array, Array, float]:
    """Maps A of a group's queries and B of its keys to ``width`` channels, and the scores' power they lose.

    queries, keys: float[size, size], their moments C. q·A·Bᵀ·kᵀ is nearest to q·kᵀ in the mean square if any
    query meets any key: A = C_q^-½ U Σ^½, B = C_k^-½ V Σ^½ of the leading singular vectors of C_q^½ C_k^½.
    """
    (root_q, inverse_q), (root_k, inverse_k) = _roots(queries), _roots(keys)
    left, powers, right = np.linalg.svd(root_q @ root_k)
    scale = np.sqrt(powers[:width])
    lost = float(np.square(powers[width:]).sum() / max(np.square(powers).sum(), 1e-30))
    return inverse_q @ left[:, :width] * scale, inverse_k @ right[:width].T * scale, lost


def _roots(matrix: Array) -> tuple[Array, Array]:
    """The symmetric square root of a damped moment, and its inverse."""
    values, vectors = np.linalg.eigh(damped(matrix, FAINT))
    root = np.sqrt(np.maximum(values, 1e-30))
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T


def block_diagonal(bases: Sequence[Array]) -> Array:
    """float64[Σ size, Σ width]: each basis for its own channels."""
    rows, columns = (np.cumsum([0, *(basis.shape[axis] for basis in bases)]) for axis in (0, 1))
    whole = np.zeros((rows[-1], columns[-1]))
    for index, basis in enumerate(bases):
        whole[rows[index] : rows[index + 1], columns[index] : columns[index + 1]] = basis
    return whole


def fitted(weight: Array, matrix: Array, basis: Array) -> Array:
    """float32[outputs, widths]: what reads x·basis such that it gives what ``weight`` gave of x.

    W·M·E·(EᵀME)⁻¹, in least squares for the damped moment M.
    """
    moment = damped(matrix)
    shared = moment @ basis
    right = weight.astype(np.float64) @ shared
    return np.linalg.solve(basis.T @ shared, right.T).T.astype(np.float32)


def turned(array: Array, axis: int, units: Array, bases: Sequence[Array]) -> Array:
    """``array`` with the channels of every head along ``axis`` in its basis, and thereby fewer.

    units: int[size of the axis], channels 0, 1, … of one head after the other, NONE in between. Each basis
    serves as many heads as the next, which follow each other.
    """
    last = np.moveaxis(array, axis, -1)
    size, width = bases[0].shape
    starts = np.flatnonzero(units == 0)
    share = len(starts) // len(bases)
    parts, end = [], 0
    for index, start in enumerate(starts):
        basis = bases[index // share].astype(last.dtype)
        parts += [last[..., end:start], last[..., start : start + size] @ basis]
        end = start + size
    whole = np.concatenate([*parts, last[..., end:]], axis=-1)
    assert whole.shape[-1] == np.count_nonzero((units == NONE) | (units < width))
    return np.ascontiguousarray(np.moveaxis(whole, -1, axis))
