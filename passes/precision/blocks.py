"""Rounding weights to few bits block by block: scales and zero points of least squared error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir

from ...compiler.ir.quantized import BlockedWeight
from ...compiler.reference import Array

_CHUNK = 1 << 21
"""Elements that are rounded at a time: what is in memory besides the tensor itself."""

_TINY = np.float32(1e-12)


@dataclass(frozen=True, slots=True)
class Rounding:
    """How blocks are rounded: ``bits``, columns a block has, around zero or between least and greatest.

    ``ratios``: of a block's range that the codes may span; the one with the least squared error is taken.
    """

    bits: int
    block: int
    symmetric: bool
    ratios: tuple[float, ...]

    @property
    def dtype(self) -> ir.DataType:
        """Of the codes."""
        four, eight = ir.DataType.INT4, ir.DataType.INT8
        return (four if self.bits == 4 else eight) if self.symmetric else (
            ir.DataType.UINT4 if self.bits == 4 else ir.DataType.UINT8
        )  # fmt: skip


class Rounded:
    """A weight and its rounding; scales are found once, codes made whenever they are read."""

    __slots__ = ("__weakref__", "_scale", "_zero", "rounding", "tensor", "turned", "weight")

    def __init__(self, tensor: ir.TensorProtocol, turned: bool, rounding: Rounding) -> None:
        self.tensor, self.turned, self.rounding = tensor, turned, rounding
        self._scale: Array | None = None
        self._zero: Array | None = None
        rows, columns = tensor.shape.numpy()[:: -1 if turned else 1]
        blocks = columns // rounding.block
        self.weight = BlockedWeight(
            ir.LazyTensor(self._codes, dtype=rounding.dtype, shape=ir.Shape([rows, columns])),
            ir.LazyTensor(self._scales, dtype=ir.DataType.FLOAT, shape=ir.Shape([rows, blocks])),
            None
            if rounding.symmetric
            else ir.LazyTensor(self._zeros, dtype=rounding.dtype, shape=ir.Shape([rows, blocks])),
            None,
            rounding.block,
        )

    def _codes(self) -> ir.TensorProtocol:
        rows, columns = self.weight.shape
        codes = np.empty(rows * columns, np.int8 if self.rounding.symmetric else np.uint8)
        scale, zero, at = [], [], 0
        known = self._scale is not None and self._zero is not None
        for part in self._parts():
            if known:
                assert self._scale is not None and self._zero is not None
                first = at // self.rounding.block
                s = self._scale.ravel()[first : first + len(part)]
                z = self._zero.ravel()[first : first + len(part)]
            else:
                s, z = best_scales(part, self.rounding)
                scale.append(s)
                zero.append(z)
            codes[at : at + part.size] = rounded(part, s, z, self.rounding).ravel()
            at += part.size
        if not known:
            shape = (rows, columns // self.rounding.block)
            self._scale, self._zero = (
                np.concatenate(scale).reshape(shape),
                np.concatenate(zero).reshape(shape),
            )
        dtype = self.rounding.dtype
        return ir.Tensor(codes.reshape(rows, columns).astype(dtype.numpy(), copy=False), dtype=dtype)

    def _parts(self) -> Iterator[Array]:
        """float32[blocks, block], a stretch of rows at a time."""
        array = self.tensor.numpy()
        array = array.T if self.turned else array
        step = max(1, _CHUNK // array.shape[1])
        for start in range(0, len(array), step):
            yield array[start : start + step].astype(np.float32).reshape(-1, self.rounding.block)

    def _scales(self) -> ir.TensorProtocol:
        if self._scale is None:
            self._codes()
        assert self._scale is not None
        return ir.Tensor(self._scale)

    def _zeros(self) -> ir.TensorProtocol:
        if self._zero is None:
            self._codes()
        assert self._zero is not None
        dtype = self.rounding.dtype
        return ir.Tensor(self._zero.astype(dtype.numpy()), dtype=dtype)


_KNOWN: WeakValueDictionary[tuple[int, bool, Rounding], Rounded] = WeakValueDictionary()


def rounded_weight(tensor: ir.TensorProtocol, turned: bool, rounding: Rounding) -> Rounded:
    """``tensor`` rounded, as [rows, columns]; ``turned``: it is [columns, rows].

    The same tensor, which entries and clones of a program share, gives the same result while that lives.
    """
    key = id(tensor), turned, rounding
    found = _KNOWN.get(key)
    if found is None:
        found = _KNOWN[key] = Rounded(tensor, turned, rounding)
    return found


def best_scales(parts: Array, rounding: Rounding) -> tuple[Array, Array]:
    """Scale and zero point (float32) of each block; parts: float32[blocks, block]."""
    scale, zero = _spanning(parts, 1.0, rounding)
    if rounding.ratios == (1.0,):
        return scale, zero
    least = np.full(len(parts), np.inf, np.float32)
    best = scale, zero
    for ratio in rounding.ratios:
        scale, zero = _spanning(parts, ratio, rounding)
        codes = rounded(parts, scale, zero, rounding).astype(np.float32) - zero[:, None]
        # the codes being what they are, the scale of least squares
        power = np.einsum("ij,ij->i", codes, codes)
        fitted = np.einsum("ij,ij->i", codes, parts) / np.maximum(power, 1)
        scale = np.where(fitted > _TINY, fitted, scale).astype(np.float32)
        codes = rounded(parts, scale, zero, rounding).astype(np.float32) - zero[:, None]
        codes *= scale[:, None]
        codes -= parts
        error = np.einsum("ij,ij->i", codes, codes)
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, scale, best[0]), np.where(better, zero, best[1])
    return best


def rounded(parts: Array, scale: Array, zero: Array, rounding: Rounding) -> Array:
    """Codes of the blocks, int8 or uint8."""
    low, high = _span(rounding)
    codes = parts / scale[:, None]
    np.rint(codes, out=codes)
    codes += zero[:, None]
    np.clip(codes, low, high, out=codes)
    return codes.astype(np.int8 if rounding.symmetric else np.uint8)


def _span(rounding: Rounding) -> tuple[int, int]:
    half = 1 << (rounding.bits - 1)
    return (-half, half - 1) if rounding.symmetric else (0, 2 * half - 1)


def _spanning(parts: Array, ratio: float, rounding: Rounding) -> tuple[Array, Array]:
    """Scale and zero point with which the codes span ``ratio`` of each block's range."""
    low, high = _span(rounding)
    if rounding.symmetric:
        scale = np.abs(parts).max(-1) * (ratio / high)
        return np.maximum(scale, _TINY).astype(np.float32), np.zeros(len(parts), np.float32)
    least, most = (np.minimum(parts.min(-1), 0) * ratio, np.maximum(parts.max(-1), 0) * ratio)
    scale = np.maximum((most - least) / high, _TINY).astype(np.float32)
    return scale, np.clip(np.rint(-least / scale), low, high).astype(np.float32)
