"""Codes of integer weights: in which widths the numbers of a weight fit, and what is taken off them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ....reference import Array
from .int_format import BLOCK, WIDTHS
from .packed import TILE

Unsigned = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Codes:
    """``code = data - low`` in ``bits``. The kernel takes half their range (``biased``) or a zero point
    (``zeroed``) off them, or nothing.
    """

    bits: int
    biased: bool
    zeroed: bool
    low: int

    def of(self, rows: Array, dtype: ir.DataType) -> Unsigned:
        """Codes of some rows of the data, padded to whole tiles and blocks."""
        low = self.low
        raw: Unsigned = rows.view(np.uint8)
        if dtype == ir.DataType.INT4:
            raw, low = (raw & np.uint8(15)) ^ np.uint8(8), low + 8
        codes: Unsigned = raw - np.uint8(low & 255)
        count, columns = codes.shape
        missing = -count % TILE, -columns % BLOCK
        return np.pad(codes, ((0, missing[0]), (0, missing[1]))) if any(missing) else codes


def common_codes(weights: Sequence[tuple[ir.TensorProtocol, Array | None]], group: int) -> list[Codes]:
    """Codes of one kind, the smallest, for several weights: their data and zero points."""
    choices = [_choices(data, zero) for data, zero in weights]
    kinds = [kind for kind in choices[0] if all(kind in other for other in choices[1:])]
    best = min(kinds, key=lambda kind: (kind[0] * group + 8 * kind[2], kind[2]))
    return [Codes(*best, choice[best]) for choice in choices]


def least_code(data: ir.TensorProtocol) -> int:
    """The least number of the data: of the dtype's with 4 bits."""
    return _range(data)[0]


def _choices(data: ir.TensorProtocol, zero: Array | None) -> dict[tuple[int, bool, bool], int]:
    """(bits, biased, zeroed) → low."""
    low, high = _range(data)
    constant = 0 if zero is None else int(zero.flat[0])
    is_constant = zero is None or bool((zero == constant).all())
    least = min(low, constant if zero is None else int(zero.min()))
    found: dict[tuple[int, bool, bool], int] = {}
    for bits in WIDTHS:
        half = 1 << bits - 1
        if is_constant and low >= constant and high - constant < 2 * half:
            found[bits, False, False] = constant
        if is_constant and -half <= low - constant and high - constant < half:
            found[bits, True, False] = constant - half
        if high - least < 2 * half:
            found[bits, False, True] = least
    return found


def _range(data: ir.TensorProtocol) -> tuple[int, int]:
    """The least and greatest number: of the dtype's with 4 bits, else of the data's."""
    if data.dtype == ir.DataType.UINT4:
        return 0, 15
    if data.dtype == ir.DataType.INT4:
        return -8, 7
    array = data.numpy()
    return (int(array.min()), int(array.max())) if array.size else (0, 0)
