"""Low-rank factors of weights: of least error in what comes out, given the moment of what goes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...compiler.reference import Array

DAMPING = 1e-4
"""Added to a moment's diagonal, as a share of its mean, where a root of it is taken."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Directions of a weight's output, most power first.

    ``basis``: float64[rows, k], orthonormal. ``power``: float64[k], mean square of the output along each.
    The best product of rank r is U·(Uᵀ·W) for the first r columns U: no other loses less power.
    """

    basis: Array
    power: Array

    def lost(self, rank: int) -> float:
        """Share of the output's power that rank ``rank`` loses."""
        return float(self.power[rank:].sum() / max(float(self.power.sum()), 1e-300))

    def rank(self, loss: float) -> int:
        """The least rank that loses no more than the share ``loss``."""
        left = 1 - np.cumsum(self.power) / max(float(self.power.sum()), 1e-300)
        return int(np.searchsorted(-left, -loss)) + 1


def spectrum(weight: Array, matrix: Array | None = None) -> Spectrum:
    """Of ``weight``, float[rows, columns], for inputs of the moment ``matrix``, float[columns, columns].

    The singular value decomposition of W·M^½, of which only the left vectors are needed: no root is inverted.
    Without a moment that of W itself. Sources: SVD-LLM, arXiv 2403.07378; ASVD, arXiv 2312.05821.
    """
    wide = weight.astype(np.float64)
    rows, columns = wide.shape
    root: Array | None = None
    if matrix is not None and rows > columns:
        root = np.linalg.cholesky(_damped(matrix))
    shaped = wide if root is None else wide @ root
    if rows <= columns:
        gram = wide @ wide.T if matrix is None else wide @ matrix.astype(np.float64) @ wide.T
        power, basis = np.linalg.eigh(gram)
        return Spectrum(basis[:, ::-1], np.maximum(power[::-1], 0))
    power, right = np.linalg.eigh(shaped.T @ shaped)
    basis, _ = np.linalg.qr(shaped @ right[:, ::-1])
    return Spectrum(basis, np.maximum(power[::-1], 0))


def factors(weight: Array, found: Spectrum, rank: int) -> tuple[Array, Array]:
    """float32[rows, rank] and float32[rank, columns], whose product is ``weight`` at that rank.

    What goes between them is scaled half way to unit size, so that both round well to few bits.
    """
    basis = found.basis[:, :rank]
    scale = np.maximum(found.power[:rank] / max(float(found.power[0]), 1e-300), 1e-12) ** 0.25
    first = (basis.T @ weight.astype(np.float64)) / scale[:, None]
    return (basis * scale).astype(np.float32), first.astype(np.float32)


def stacked(weights: Sequence[Array], matrix: Array | None) -> tuple[Array, list[float]]:
    """Weights of one input above each other, each divided such that its output has unit power; by what."""
    sizes = []
    for weight in weights:
        wide = weight.astype(np.float64)
        power = np.square(wide).sum() if matrix is None else np.einsum("ij,ij->", wide @ matrix, wide)
        sizes.append(float(np.sqrt(max(power, 1e-300))))
    return np.concatenate([w / size for w, size in zip(weights, sizes, strict=True)]), sizes


def _damped(matrix: Array) -> Array:
    found: Array = matrix.astype(np.float64)
    mean = float(np.diagonal(found).mean())
    found[np.diag_indices(len(found))] += DAMPING * mean if mean > 0 else 1.0
    return found
