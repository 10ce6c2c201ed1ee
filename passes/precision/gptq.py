"""GPTQ: columns rounded in turn, later ones making up for it, then codes and scales gone over again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...compiler.reference import Array
from .grids import Grid, Rounding, best_grid, halves

_LAZY = 128
"""Columns after which the rest of a weight is brought up to date in one product."""
_SMALL = 64
"""Columns of a triangular matrix that is inverted as any other."""


@dataclass(frozen=True, slots=True)
class Hessian:
    """What a change of a weight costs, for GPTQ: ``matrix``: float32[columns, columns], damped.

    ``upper``: upper triangular U with UᵀU its inverse, of the columns in ``order``: what an error in one
    column moves in later ones.
    """

    matrix: Array
    upper: Array
    order: Array

    @classmethod
    def of(cls, moment: Array, rounding: Rounding) -> Hessian:
        """Of the activations' second moment; dead channels, whose weights don't matter, cost a little."""
        matrix = moment.astype(np.float64)
        power = np.diagonal(matrix).copy()
        mean = float(power.mean()) or 1.0
        matrix[np.diag_indices_from(matrix)] += rounding.damping * mean
        order = np.argsort(-power, kind="stable") if rounding.ordered else np.arange(len(matrix))
        backwards = order[::-1]
        lower = np.linalg.cholesky(matrix[np.ix_(backwards, backwards)])
        # H = R Rᵀ with R upper triangular, so that the inverse of R is the factor of H's inverse.
        upper = _inverse(lower)[::-1, ::-1]
        return cls(matrix.astype(np.float32), np.ascontiguousarray(upper, np.float32), order)


def hessian_of(moment: Array, rounding: Rounding) -> Hessian:
    """As ``Hessian.of``; the last one is kept: weights that read the same come one after the other."""
    options = rounding.damping, rounding.ordered
    for known, asked, hessian in _LAST:
        if asked == options and np.array_equal(known, moment):
            return hessian
    hessian = Hessian.of(moment, rounding)
    _LAST.clear()
    if moment.nbytes <= _KEPT:
        _LAST.append((moment, options, hessian))
    return hessian


_LAST: list[tuple[Array, tuple[float, bool], Hessian]] = []
_KEPT = 1 << 25
"""Bytes of a second moment up to which its Hessian is kept."""


def _inverse(lower: Array) -> Array:
    """Of a lower triangular matrix, by halves: a third of the work of a general inverse."""
    size = len(lower)
    if size <= _SMALL:
        return np.asarray(np.linalg.inv(lower))
    half = size // 2
    made = np.zeros_like(lower)
    made[:half, :half] = first = _inverse(lower[:half, :half])
    made[half:, half:] = second = _inverse(lower[half:, half:])
    made[half:, :half] = -second @ (lower[half:, :half] @ first)
    return made


def gptq(rows: Array, hessian: Hessian, rounding: Rounding) -> tuple[Array, Grid]:
    """Codes, float32[rows, columns], and grids of its blocks, row by row, for float32[rows, columns].

    With ``ordered`` the grids are those of the weight as it is, else each is found when its first column is
    reached, of what earlier columns have made of it. Source: arXiv 2210.17323; the sweeps afterwards are
    coordinate descent over codes and scales, as in QuantEase, arXiv 2309.01885.
    """
    count, columns = rows.shape
    blocks, block = columns // rounding.block, rounding.block
    importance = np.diagonal(hessian.matrix).reshape(blocks, block)
    order, upper = hessian.order, hessian.upper
    work = np.ascontiguousarray(rows.T[order])
    codes = np.empty((columns, count), np.float32)
    grids = _Grids.empty(blocks, count)
    if rounding.ordered:
        for b in range(blocks):
            part = rows[:, b * block : (b + 1) * block]
            grids.put(b, best_grid(np.ascontiguousarray(part), importance[b : b + 1], rounding))
    low, high = rounding.span
    step = max(_LAZY, block)
    for first in range(0, columns, step):
        last = min(first + step, columns)
        errors = np.empty((last - first, count), np.float32)
        for k in range(first, last):
            column = int(order[k])
            b = column // block
            if not rounding.ordered and k % block == 0:
                part = np.ascontiguousarray(work[k : k + block].T)
                grids.put(b, best_grid(part, importance[b : b + 1], rounding))
            scale, shift = grids.scale[b], grids.shift(b)
            code = np.clip(np.rint((work[k] - shift) / scale), low, high)
            codes[column] = code
            error = (work[k] - (code * scale + shift)) / upper[k, k]
            errors[k - first] = error
            if k + 1 < last:
                work[k + 1 : last] -= upper[k, k + 1 : last, None] * error
        if last < columns:
            work[last:] -= upper[first:last, last:].T @ errors
    if rounding.sweeps:
        _sweep(np.ascontiguousarray(rows.T), codes, grids, hessian.matrix, rounding)
    return np.ascontiguousarray(codes.T), grids.grid()


@dataclass(slots=True)
class _Grids:
    """``scale``, ``zero``, ``offset``: float32[blocks, rows]."""

    scale: Array
    zero: Array
    offset: Array

    @classmethod
    def empty(cls, blocks: int, rows: int) -> _Grids:
        return cls(*(np.zeros((blocks, rows), np.float32) for _ in range(3)))

    def put(self, block: int, grid: Grid) -> None:
        self.scale[block], self.zero[block], self.offset[block] = grid.scale, grid.zero, grid.offset

    def shift(self, block: int) -> Array:
        """What the code 0 stands for."""
        lifted: Array = self.offset[block] - self.zero[block] * self.scale[block]
        return lifted

    def grid(self) -> Grid:
        """By row, then block."""
        return Grid(*(np.ascontiguousarray(a.T).ravel() for a in (self.scale, self.zero, self.offset)))


def _sweep(wanted: Array, codes: Array, grids: _Grids, matrix: Array, rounding: Rounding) -> None:
    """Bring scales and codes, block after block, to what is best with all others as they are.

    wanted, codes: [columns, rows]. ``slope`` is the matrix times what is missing: no step makes it worse.
    """
    low, high = rounding.span
    size = rounding.block
    made = np.empty_like(wanted)
    for b in range(len(grids.scale)):
        at = slice(b * size, (b + 1) * size)
        made[at] = codes[at] * grids.scale[b] + grids.shift(b)
    slope = matrix @ (wanted - made)
    for _ in range(rounding.sweeps):
        for b in range(len(grids.scale)):
            at = slice(b * size, (b + 1) * size)
            inner, before = matrix[at, at], made[at].copy()
            near = slope[at].copy()
            _rescale(codes[at], near, inner, grids, b, rounding)
            after = codes[at] * grids.scale[b] + grids.shift(b)
            scale, shift = grids.scale[b], grids.shift(b)
            for k in range(size):
                own = at.start + k
                target = after[k] + near[k] / inner[k, k]
                code = np.clip(np.rint((target - shift) / scale), low, high)
                moved = (code - codes[own]) * scale
                codes[own] = code
                after[k] += moved
                near -= inner[:, k, None] * moved
            made[at] = after
            slope -= matrix[:, at] @ (after - before)


def _rescale(codes: Array, near: Array, inner: Array, grids: _Grids, b: int, rounding: Rounding) -> None:
    """Scale, and offset or zero point, of one block, codes kept; ``near``, its slope, follows."""
    scale, zero, offset = grids.scale[b], grids.zero[b], grids.offset[b]
    shapes = codes - zero
    pull = inner @ shapes
    power, gain = (shapes * pull).sum(0), (shapes * near).sum(0)
    ones = inner.sum(1)
    if rounding.scheme == "offset":
        cross, mass, lift = pull.sum(0), float(ones.sum()), near.sum(0)
        det = np.maximum(power * mass - cross * cross, 1e-30)
        moved = scale + np.where(power > 0, (gain * mass - lift * cross) / det, 0)
        moved = np.where(moved > 0, halves(moved), scale)
        step = moved - scale
        raised = halves(offset + (lift - step * cross) / max(mass, 1e-30))
        up = raised - offset
        better = 2 * (step * gain + up * lift) > step**2 * power + 2 * step * up * cross + up**2 * mass
        step, up = np.where(better, step, 0), np.where(better, up, 0)
        scale += step
        offset += up
        near -= pull * step + ones[:, None] * up
        return
    moved = halves(scale + np.where(power > 0, gain / np.maximum(power, 1e-30), 0))
    step = np.where((moved * scale > 0), moved - scale, 0)
    step = np.where(2 * step * gain > step**2 * power, step, 0)
    scale += step
    near -= pull * step
    if rounding.scheme == "asymmetric":
        low, high = rounding.span
        lift, mass = near.sum(0), float(ones.sum())
        want = np.clip(zero - np.rint(lift / (mass * scale)), low, high) if mass > 0 else zero
        up = (zero - want) * scale
        up = np.where(2 * up * lift > up**2 * mass, up, 0)
        zero -= np.rint(up / scale)
        near -= ones[:, None] * up
