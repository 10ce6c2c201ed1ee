"""Random integer weights in the layouts that models bring: GGUF's blocks, ONNX's, scales per row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from miaotui.compiler.ir.quantized import BlockedWeight

from .linear_cases import Array

Random = np.random.Generator


def tensor(array: Array, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
    """A tensor; with a 4-bit dtype, of integers that fit."""
    return ir.Tensor(array if dtype is None else array.astype(dtype.numpy()))


def blocked(
    data: Array,
    dtype: ir.DataType,
    scale: Array,
    block: int,
    zero_point: Array | None = None,
    offset: Array | None = None,
) -> BlockedWeight:
    """A blocked weight from integers."""
    zero = None if zero_point is None else tensor(zero_point, dtype)
    return BlockedWeight(
        tensor(data, dtype),
        tensor(scale.astype(np.float32)),
        zero,
        None if offset is None else tensor(offset.astype(np.float32)),
        block,
    )


def _halves(random: Random, shape: tuple[int, ...]) -> Array:
    return (random.standard_normal(shape) * 0.02).astype(np.float16).astype(np.float32)


def _floats(random: Random, shape: tuple[int, ...]) -> Array:
    return (random.standard_normal(shape) * 0.02).astype(np.float32)


def _codes(random: Random, shape: tuple[int, int], low: int, high: int) -> npt.NDArray[np.int16]:
    return random.integers(low, high + 1, shape).astype(np.int16)


def _levels(random: Random, rows: int, columns: int, group: int, low: int, high: int) -> Array:
    first = _halves(random, (rows, columns // 256, 1))
    second = random.integers(low, high + 1, (rows, columns // 256, 256 // group)).astype(np.float32)
    return (first * second).reshape(rows, columns // group)


INT4, UINT4, INT8, UINT8 = ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8

Maker = Callable[[Random, int, int], BlockedWeight]


def _plain(
    low: int, high: int, dtype: ir.DataType, group: int, scales: Callable[..., Array], offset: bool
) -> Maker:
    def make(random: Random, rows: int, columns: int) -> BlockedWeight:
        shape = rows, columns // group
        moved = scales(random, shape) if offset else None
        data = _codes(random, (rows, columns), low, high)
        return blocked(data, dtype, scales(random, shape), group, offset=moved)

    return make


def _zeroed(low: int, high: int, dtype: ir.DataType, group: int, constant: int | None = None) -> Maker:
    def make(random: Random, rows: int, columns: int) -> BlockedWeight:
        shape = rows, columns // group
        zero = _codes(random, shape, low, high) if constant is None else np.full(shape, constant, np.int16)
        data = _codes(random, (rows, columns), low, high)
        return blocked(data, dtype, _floats(random, shape), group, zero_point=zero)

    return make


def _k_quant(
    low: int, high: int, dtype: ir.DataType, group: int, least: int, most: int, offset: bool
) -> Maker:
    def make(random: Random, rows: int, columns: int) -> BlockedWeight:
        scale = _levels(random, rows, columns, group, least, most)
        moved = -_levels(random, rows, columns, group, least, most) if offset else None
        data = _codes(random, (rows, columns), low, high)
        return blocked(data, dtype, scale, group, offset=moved)

    return make


MAKERS: dict[str, tuple[Maker, int, str]] = {
    "q4_0": (_plain(-8, 7, INT4, 32, _halves, False), 32, "4, 1, SCALE_F16, OFFSET_NONE"),
    "q4_1": (_plain(0, 15, UINT4, 32, _halves, True), 32, "4, 0, SCALE_F16, OFFSET_F16"),
    "q5_0": (_plain(-16, 15, INT8, 32, _halves, False), 32, "5, 1, SCALE_F16, OFFSET_NONE"),
    "q5_1": (_plain(0, 31, UINT8, 32, _halves, True), 32, "5, 0, SCALE_F16, OFFSET_F16"),
    "q8_0": (_plain(-127, 127, INT8, 32, _halves, False), 32, "8, 1, SCALE_F16, OFFSET_NONE"),
    "q4_k": (_k_quant(0, 15, UINT4, 32, 0, 63, True), 256, "4, 0, SCALE_TWO_LEVEL, OFFSET_TWO_LEVEL"),
    "q5_k": (_k_quant(0, 31, UINT8, 32, 0, 63, True), 256, "5, 0, SCALE_TWO_LEVEL, OFFSET_TWO_LEVEL"),
    "q6_k": (_k_quant(-32, 31, INT8, 16, -128, 127, False), 256, "6, 1, SCALE_TWO_LEVEL, OFFSET_NONE"),
    "int4_16": (_plain(-8, 7, INT4, 16, _floats, False), 16, "4, 1, SCALE_F32, OFFSET_NONE"),
    "int8_16_offset": (_plain(-128, 127, INT8, 16, _floats, True), 16, "8, 1, SCALE_F32, OFFSET_F32"),
    "int4_64": (_plain(-8, 7, INT4, 64, _floats, False), 64, "4, 1, SCALE_F32, OFFSET_NONE"),
    "int6_96": (_plain(-32, 31, INT8, 96, _halves, True), 96, "6, 1, SCALE_F16, OFFSET_F16"),
    "int8_48": (_plain(-128, 127, INT8, 48, _floats, False), 48, "8, 1, SCALE_F32, OFFSET_NONE"),
    "uint8_128": (_plain(0, 255, UINT8, 128, _floats, True), 128, "8, 0, SCALE_F32, OFFSET_F32"),
    "uint4_zero": (_zeroed(0, 15, UINT4, 32), 32, "4, 0, SCALE_F32, OFFSET_ZERO_POINT"),
    "uint4_zero_16": (_zeroed(0, 15, UINT4, 16), 16, "4, 0, SCALE_F32, OFFSET_ZERO_POINT"),
    "uint8_zero_64": (_zeroed(0, 255, UINT8, 64), 64, "8, 0, SCALE_F32, OFFSET_ZERO_POINT"),
    "int8_zero": (_zeroed(-128, 127, INT8, 32), 32, "8, 0, SCALE_F32, OFFSET_ZERO_POINT"),
    "uint4_eight": (_zeroed(0, 15, UINT4, 32, 8), 32, "4, 1, SCALE_F32, OFFSET_NONE"),
    "uint8_half": (_zeroed(0, 255, UINT8, 32, 128), 32, "8, 1, SCALE_F32, OFFSET_NONE"),
}
"""Name → what makes a weight[rows, columns] of it, the columns' step, and the packed format."""
