"""A weight rounded block by block: its grids found once, its codes made when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir

from ...compiler.ir.quantized import BlockedWeight
from ...compiler.reference import Array
from ..moments import Moment, fingerprint
from .gptq import gptq, hessian_of
from .grids import Grid, Rounding, best_grid, spanning

_CHUNK = 1 << 21
"""Elements that are rounded at a time: what is in memory besides the tensor itself."""


class Rounded:
    """A weight and its rounding. ``moment``: asked for when needed, of the activations it is multiplied with.

    Held once known: scales with offsets or zero points, and codes that GPTQ has found, packed.
    """

    __slots__ = ("__weakref__", "_codes", "_grid", "_moment", "rounding", "tensor", "turned", "weight")

    def __init__(
        self,
        tensor: ir.TensorProtocol,
        turned: bool,
        rounding: Rounding,
        moment: Callable[[], Moment] | None = None,
    ) -> None:
        self.tensor, self.turned, self.rounding, self._moment = tensor, turned, rounding, moment
        self._grid: tuple[Array, Array | None] | None = None
        self._codes: Array | None = None
        rows, columns = tensor.shape.numpy()[:: -1 if turned else 1]
        blocks = rows, columns // rounding.block

        def lazy(read: Callable[[], Array], dtype: ir.DataType) -> ir.LazyTensor:
            shape = ir.Shape(blocks)
            return ir.LazyTensor(
                lambda: ir.Tensor(read().reshape(blocks).astype(dtype.numpy()), dtype=dtype),
                dtype=dtype,
                shape=shape,
            )

        scheme, plain = rounding.scheme, ir.DataType.FLOAT
        self.weight = BlockedWeight(
            ir.LazyTensor(self._data, dtype=rounding.dtype, shape=ir.Shape([rows, columns])),
            lazy(lambda: self.grid().scale, plain),
            lazy(lambda: self.grid().zero, rounding.dtype) if scheme == "asymmetric" else None,
            lazy(lambda: self.grid().offset, plain) if scheme == "offset" else None,
            rounding.block,
        )

    def grid(self) -> Grid:
        """Of all blocks, row by row."""
        if self._grid is None:
            self._data()
        assert self._grid is not None
        scale, other = self._grid
        none = np.broadcast_to(np.float32(0), scale.shape)
        if self.rounding.scheme == "offset":
            return Grid(scale, none, none if other is None else other)
        return Grid(scale, none if other is None else other.astype(np.float32), none)

    def error(self) -> float | None:
        """Mean squared error of the outputs as a share of their mean square; None if nothing was measured.

        The trace of D M Dᵀ over that of W M Wᵀ: W the weight, D what rounding changes, M the second moment.
        """
        if self._moment is None:
            return None
        moment = self._moment()
        codes, lost, whole, grid, start = self._rounded(), 0.0, 0.0, self.grid(), 0
        size = self.rounding.block
        for rows in self._rows():
            count = rows.size // size
            made = _part(grid, start, count).values(codes[start : start + count].astype(np.float32))
            lost += moment.error(made.reshape(rows.shape) - rows)
            whole += moment.error(rows)
            start += count
        return lost / whole if whole > 0 else 0.0

    def _data(self) -> ir.TensorProtocol:
        codes, dtype = self._rounded(), self.rounding.dtype
        shape = self.weight.shape
        if self.rounding.bits == 4:
            return ir.PackedTensor(_packed(codes), dtype, shape=ir.Shape(shape))
        return ir.Tensor(codes.reshape(shape), dtype=dtype)

    def _rounded(self) -> Array:
        """Codes of the blocks, (u)int8[blocks, block]."""
        rows, columns = self.weight.shape
        size = self.rounding.block
        signed = self.rounding.scheme == "symmetric"
        if self._codes is not None:
            return _unpacked(self._codes, signed, self.rounding.bits).reshape(-1, size)
        codes = np.empty((rows * columns // size, size), np.int8 if signed else np.uint8)
        known = None if self._grid is None else self.grid()
        solve = self._solver() if known is None else None
        found, at = [], 0
        for part in self._rows():
            blocks = part.reshape(-1, size)
            if solve is not None:
                code, grid = solve(part)
                found.append(grid)
            elif known is not None:
                code = _part(known, at, len(blocks)).codes(blocks, self.rounding)
            codes[at : at + len(blocks)] = code.reshape(-1, size)
            at += len(blocks)
        if found:
            scale, zero, offset = (np.concatenate(a) for a in zip(*(g.arrays for g in found), strict=True))
            other = {"symmetric": None, "asymmetric": zero.astype(np.uint8), "offset": offset}
            self._grid = scale, other[self.rounding.scheme]
        if self.rounding.method == "gptq":
            self._codes = _packed(codes) if self.rounding.bits == 4 else codes
        return codes

    def _solver(self) -> Callable[[Array], tuple[Array, Grid]]:
        """What finds codes and grids of rows float32[rows, columns]."""
        rounding = self.rounding
        moment = None if self._moment is None else self._moment()
        if rounding.method == "gptq" and moment is not None:
            hessian = hessian_of(moment.matrix, rounding)
            return lambda rows: gptq(rows, hessian, rounding)
        power = None if moment is None else np.diagonal(moment.matrix).reshape(-1, rounding.block)

        def solve(rows: Array) -> tuple[Array, Grid]:
            parts = rows.reshape(-1, rounding.block)
            if rounding.method == "rtn":
                grid = spanning(parts, rounding)
            else:
                grid = best_grid(parts, None if power is None else np.tile(power, (len(rows), 1)), rounding)
            return grid.codes(parts, rounding), grid

        return solve

    def _rows(self) -> Iterator[Array]:
        """float32[rows, columns], a stretch of rows at a time."""
        array = self.tensor.numpy()
        array = array.T if self.turned else array
        step = max(1, _CHUNK // array.shape[1])
        for start in range(0, len(array), step):
            yield np.ascontiguousarray(array[start : start + step], np.float32)


def _part(grid: Grid, start: int, count: int) -> Grid:
    return Grid(*(array[start : start + count] for array in grid.arrays))


def _packed(codes: Array) -> Array:
    """Two codes of 4 bits in a byte, the first in the low half."""
    raw = codes.reshape(-1).view(np.uint8) & np.uint8(15)
    packed: Array = raw[0::2] | (raw[1::2] << np.uint8(4))
    return packed


def _unpacked(stored: Array, signed: bool, bits: int) -> Array:
    if bits == 8:
        return stored
    raw = np.empty(stored.size * 2, np.uint8)
    raw[0::2], raw[1::2] = stored & np.uint8(15), stored >> np.uint8(4)
    return ((raw ^ np.uint8(8)) - np.uint8(8)).view(np.int8) if signed else raw


_KNOWN: WeakValueDictionary[tuple[object, ...], Rounded] = WeakValueDictionary()


def rounded_weight(
    tensor: ir.TensorProtocol,
    turned: bool,
    rounding: Rounding,
    moment: Callable[[], Moment] | None = None,
) -> Rounded:
    """``tensor`` rounded, as [rows, columns]; ``turned``: it is [columns, rows].

    The same tensor, which entries and clones of a program share, with the same moment gives the same result
    while that lives.
    """
    key = id(tensor), turned, rounding, None if moment is None else fingerprint(moment())
    found = _KNOWN.get(key)
    if found is None:
        found = _KNOWN[key] = Rounded(tensor, turned, rounding, moment)
    return found
