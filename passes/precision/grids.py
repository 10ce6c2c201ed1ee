"""Grids of blocks of weights: few codes, a scale, and a zero point or an offset, of least squared error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...compiler.reference import Array

SCHEMES = ("symmetric", "asymmetric", "offset")
"""Codes around zero; with an integer zero point per block; with a float offset per block, as GGUF's Q4_1."""

RATIOS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Shares of a block's range that codes of 4 bits are tried to span."""

_TINY = np.float32(1e-12)


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
        mine, theirs = (self.scale, self.zero, self.offset), (other.scale, other.zero, other.offset)
        return Grid(*(np.where(choice, a, b) for a, b in zip(mine, theirs, strict=True)))


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
    weight = np.ones((1, parts.shape[1]), np.float32) if importance is None else importance
    weight = weight + _TINY
    best, least = spanning(parts, rounding), np.full(len(parts), np.inf, np.float32)
    for start in _starts(parts, rounding):
        grid = start
        for _ in range(2):
            grid = _fitted(parts, grid.codes(parts, rounding), weight, grid, rounding)
        for found in (start, grid):
            change = found.values(found.codes(parts, rounding))
            change -= parts
            change *= change
            change *= weight
            error = change.sum(-1)
            better = error < least
            best, least = found.where(better, best), np.where(better, error, least)
    return best


def _starts(parts: Array, rounding: Rounding) -> Iterator[Grid]:
    for ratio in RATIOS if rounding.bits == 4 else (1.0, 0.97):
        yield spanning(parts, rounding, ratio)
    if rounding.scheme == "symmetric":  # the lowest code has no counterpart: give it to the extreme
        extreme = np.take_along_axis(parts, np.abs(parts).argmax(-1)[:, None], -1)[:, 0]
        for ratio in (1.0, 0.93, 0.86):
            scale = scales(extreme * (ratio / rounding.span[0]))
            yield Grid(scale, np.zeros_like(scale), np.zeros_like(scale))


def _fitted(parts: Array, codes: Array, weight: Array, grid: Grid, rounding: Rounding) -> Grid:
    """The codes being what they are, scale and offset (or zero point) of least squares."""
    total = np.broadcast_to(weight, parts.shape)
    if rounding.scheme == "symmetric":
        power = (total * codes * codes).sum(-1)
        fitted = (total * codes * parts).sum(-1) / np.maximum(power, _TINY)
        return replace(grid, scale=np.where(power > 0, scales(fitted), grid.scale))
    mass = total.sum(-1)
    mean, centre = (total * codes).sum(-1) / mass, (total * parts).sum(-1) / mass
    moved = codes - mean[:, None]
    power = (total * moved * moved).sum(-1)
    slope = (total * moved * parts).sum(-1) / np.maximum(power, _TINY)
    good = (power > _TINY) & (slope > 0)
    scale = np.where(good, scales(slope), grid.scale)
    if rounding.scheme == "offset":
        return Grid(scale, grid.zero, np.where(good, halves(centre - scale * mean), grid.offset))
    low, high = rounding.span
    zero = np.clip(np.rint(mean - centre / scale), low, high).astype(np.float32)
    shifted = codes - zero[:, None]
    power = (total * shifted * shifted).sum(-1)
    slope = (total * shifted * parts).sum(-1) / np.maximum(power, _TINY)
    good &= slope > 0
    return Grid(np.where(good, scales(slope), grid.scale), np.where(good, zero, grid.zero), grid.offset)


def scales(exact: Array) -> Array:
    """Scales as float32 that 16 bits hold; 1 for a block of zeros."""
    return halves(np.where(np.abs(exact) > _TINY, exact, 1))


def halves(exact: Array) -> Array:
    """Each number rounded to 16 bits, in float32; as it is if it is too large or too small for them."""
    with np.errstate(over="ignore"):
        short = exact.astype(np.float16).astype(np.float32)
    close = np.abs(short - exact) <= np.abs(exact) / 256
    return np.where(close, short, exact).astype(np.float32)
