"""Grids of blocks of weights: few codes, a scale, and a zero point or an offset, of least squared error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...compiler.reference import Array

SCHEMES = ("symmetric", "asymmetric", "offset")
"""Codes around zero; with an integer zero point per block; with a float offset per block, as GGUF's Q4_1."""

RATIOS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7)
"""Shares of a block's range that codes of 4 bits are tried to span."""

_TINY = np.float32(1e-12)
_LEAST = np.float32(1e-30)
"""Scales up to which a block counts as zeros; those too small for 16 bits are kept in 32."""

_CACHED = 1 << 16
"""Elements whose grids are looked for at a time, so that they stay in the cache."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a weight is rounded: ``bits`` of a code, columns of a ``block``, one of SCHEMES, and the method.

    ``method``: ``rtn`` spans each block's range; ``search`` looks for the grid of least squared error,
    weighted by what is known of the activations; ``gptq`` also lets later columns make up for what rounding
    earlier ones costs. ``sweeps``: times that gptq goes over its codes and scales again. ``damping``: share
    of the mean second moment that it adds to all. ``ordered``: it takes the channels of large activations
    first.
    """

    bits: int
    block: int
    scheme: str = "symmetric"
    method: str = "rtn"
    sweeps: int = 0
    damping: float = 0.01
    ordered: bool = False

    @property
    def dtype(self) -> ir.DataType:
        """Of the codes."""
        if self.scheme == "symmetric":
            return ir.DataType.INT4 if self.bits == 4 else ir.DataType.INT8
        return ir.DataType.UINT4 if self.bits == 4 else ir.DataType.UINT8

    @property
    def span(self) -> tuple[int, int]:
        """The least and the greatest code."""
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.scheme == "symmetric" else (0, 2 * half - 1)

    @property
    def stored_bits(self) -> float:
        """Bits of one weight with its share of scale and offset (16 each) or zero point (8)."""
        more = {"symmetric": 16, "asymmetric": 24, "offset": 32}[self.scheme]
        return self.bits + more / self.block


@dataclass(frozen=True, slots=True)
class Grid:
    """``(code - zero) * scale + offset``: float32[blocks] each; ``offset`` only where the scheme has one."""

    scale: Array
    zero: Array
    offset: Array

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """Scale, zero point and offset."""
        return self.scale, self.zero, self.offset

    def codes(self, parts: Array, rounding: Rounding) -> Array:
        """The nearest codes of float32[blocks, columns], as float32."""
        low, high = rounding.span
        codes = parts - self.offset[:, None]
        codes /= self.scale[:, None]
        np.rint(codes, out=codes)
        codes += self.zero[:, None]
        return np.clip(codes, low, high, out=codes)

    def values(self, codes: Array) -> Array:
        """What codes, float32[blocks, columns], stand for."""
        return (codes - self.zero[:, None]) * self.scale[:, None] + self.offset[:, None]

    def where(self, choice: Array, other: Grid) -> Grid:
        """This one's blocks where ``choice``, else ``other``'s."""
        both = zip(self.arrays, other.arrays, strict=True)
        return Grid(*(np.where(choice, a, b) for a, b in both))


def spanning(parts: Array, rounding: Rounding, ratio: float = 1.0) -> Grid:
    """The grid whose codes span ``ratio`` of the range of each block; parts: float32[blocks, columns]."""
    low, high = rounding.span
    none = np.zeros(len(parts), np.float32)
    if rounding.scheme == "symmetric":
        return Grid(scales(np.abs(parts).max(-1) * (ratio / high)), none, none)
    least, most = parts.min(-1), parts.max(-1)
    if rounding.scheme == "offset":
        cut = (most - least) * (0.5 * (1 - ratio))
        return Grid(scales((most - least) * (ratio / high)), none, halves(least + cut))
    least, most = np.minimum(least, 0) * ratio, np.maximum(most, 0) * ratio
    scale = scales((most - least) / high)
    return Grid(scale, np.clip(np.rint(-least / scale), low, high).astype(np.float32), none)


def best_grid(parts: Array, importance: Array | None, rounding: Rounding) -> Grid:
    """The grid of least squared error, weighted by ``importance``: float32[blocks or 1, columns].

    Spans of several widths, each brought to least squares twice. Source: the scale search of llama.cpp's
    k-quants.
    """
    step = max(1, _CACHED // parts.shape[1])
    found = []
    for start in range(0, len(parts), step):
        some = parts[start : start + step]
        weight = (
            importance if importance is None or len(importance) == 1 else importance[start : start + step]
        )
        found.append(_best_grid(some, weight, rounding))
    return Grid(*(np.concatenate(arrays) for arrays in zip(*(g.arrays for g in found), strict=True)))


def _best_grid(parts: Array, importance: Array | None, rounding: Rounding) -> Grid:
    best, least = spanning(parts, rounding), np.full(len(parts), np.inf, np.float32)
    shape = 1, parts.shape[1]
    weight = np.ones(shape, np.float32) if importance is None else importance + _TINY
    known = _Known(parts, weight)
    for grid in _starts(parts, rounding):
        for fit in range(3):
            sums = known.sums(grid.codes(parts, rounding))
            error = known.error(sums, grid)
            better = error < least
            best, least = grid.where(better, best), np.where(better, error, least)
            if fit < 2:
                grid = _fitted(known, sums, grid, rounding)
    return best


class _Known:
    """Sums over each block's columns that do not depend on the codes; weights count ``weight`` times."""

    __slots__ = ("mass", "parts", "power", "total", "weight")

    def __init__(self, parts: Array, weight: Array) -> None:
        self.parts, self.weight = parts, weight
        scaled = parts * weight
        self.mass = np.broadcast_to(weight.sum(-1), len(parts))
        self.total = scaled.sum(-1)
        self.power = np.einsum("ij,ij->i", scaled, parts)

    def sums(self, codes: Array) -> tuple[Array, Array, Array]:
        """Of the codes, their squares, and their products with the parts."""
        scaled = codes * self.weight
        squares = np.einsum("ij,ij->i", scaled, codes)
        return scaled.sum(-1), squares, np.einsum("ij,ij->i", scaled, self.parts)

    def error(self, sums: tuple[Array, Array, Array], grid: Grid) -> Array:
        """Squared error of each block, of codes with these sums."""
        codes, squares, products = sums
        shift = grid.offset - grid.zero * grid.scale
        found: Array = self.power + grid.scale * (grid.scale * squares - 2 * products)
        found += shift * (2 * (grid.scale * codes - self.total) + shift * self.mass)
        return found


def _starts(parts: Array, rounding: Rounding) -> Iterator[Grid]:
    for ratio in RATIOS if rounding.bits == 4 else (1.0, 0.97):
        yield spanning(parts, rounding, ratio)
    if rounding.scheme == "symmetric":  # the lowest code has no counterpart: give it to the extreme
        extreme = np.take_along_axis(parts, np.abs(parts).argmax(-1)[:, None], -1)[:, 0]
        for ratio in (1.0, 0.93, 0.86):
            scale = scales(extreme * (ratio / rounding.span[0]))
            yield Grid(scale, np.zeros_like(scale), np.zeros_like(scale))


def _fitted(known: _Known, sums: tuple[Array, Array, Array], grid: Grid, rounding: Rounding) -> Grid:
    """The codes being what they are, scale and offset (or zero point) of least squares."""
    codes, squares, products = sums
    if rounding.scheme == "symmetric":
        fitted = scales(products / np.maximum(squares, _TINY))
        return replace(grid, scale=np.where(squares > 0, fitted, grid.scale))
    mean = codes / known.mass
    power = squares - mean * codes
    slope = (products - mean * known.total) / np.maximum(power, _TINY)
    good = (power > _TINY) & (slope > 0)
    scale = np.where(good, scales(slope), grid.scale)
    centre = known.total / known.mass
    if rounding.scheme == "offset":
        return Grid(scale, grid.zero, np.where(good, halves(centre - scale * mean), grid.offset))
    low, high = rounding.span
    zero = np.clip(np.rint(mean - centre / scale), low, high).astype(np.float32)
    power = squares - zero * (2 * codes - zero * known.mass)
    slope = (products - zero * known.total) / np.maximum(power, _TINY)
    good &= (slope > 0) & (power > _TINY)
    return Grid(np.where(good, scales(slope), grid.scale), np.where(good, zero, grid.zero), grid.offset)


def scales(exact: Array) -> Array:
    """Scales as float32 that 16 bits hold; 1 for a block of zeros."""
    return halves(np.where(np.abs(exact) > _LEAST, exact, 1))


def halves(exact: Array) -> Array:
    """Each number rounded to 16 bits, in float32; as it is if it is too large or too small for them."""
    with np.errstate(over="ignore"):
        short = exact.astype(np.float16).astype(np.float32)
    close = np.abs(short - exact) <= np.abs(exact) / 256
    return np.where(close, short, exact).astype(np.float32)
