"""Blocked int8 and int4 weights as the kernels read them: tiles of 16 outputs, codes from 0 up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ....ir.quantized import BlockedWeight
from ....reference import Array

TILE = 16

_LOWEST = {
    ir.DataType.INT8: -128,
    ir.DataType.UINT8: 0,
    ir.DataType.INT4: -8,
    ir.DataType.UINT4: 0,
}


@dataclass(frozen=True, slots=True)
class PackedBlocks:
    """``weight[n, k] = (code - zero) * scale + offset``, all by tiles of 16 outputs.

    ``codes``: uint8[tiles, K / (run * halves), 16 * run], with two codes in a byte for 4 bits: the low
    halves are ``run`` inputs, the high ones the next ``run``. ``scales``: float[tiles, K / block, 16],
    float16 where that is exact. ``zeros``: a number, or uint8 like the scales. ``offsets``: like the
    scales, or None.
    """

    rows: int
    columns: int
    block: int
    halves: int
    run: int
    codes: ir.TensorProtocol
    scales: ir.TensorProtocol
    zeros: int | ir.TensorProtocol
    offsets: ir.TensorProtocol | None

    @property
    def tiles(self) -> int:
        """Of 16 outputs, the last perhaps with fewer."""
        return -(-self.rows // TILE)

    @property
    def arrays(self) -> tuple[ir.TensorProtocol, ...]:
        """What the kernel takes, in order."""
        zeros = () if isinstance(self.zeros, int) else (self.zeros,)
        return (self.codes, self.scales, *zeros, *((self.offsets,) if self.offsets is not None else ()))


def declines(weight: BlockedWeight) -> str | None:
    """Why the kernels can't take ``weight``."""
    if weight.data.dtype not in _LOWEST:
        return f"weight's codes are {weight.data.dtype.name}, neither 4 nor 8 bits"
    if weight.block % 16:
        return f"blocks of {weight.block} inputs are no multiple of 16"
    return None


def pack(weight: BlockedWeight, run: int, halves_exact: bool) -> PackedBlocks:
    """``run``: inputs whose codes lie side by side. ``halves_exact``: float16 may be used where exact."""
    rows, columns = weight.shape
    halves = 2 if weight.bits == 4 else 1
    lowest = _LOWEST[weight.data.dtype]
    shape = ir.Shape([-(-rows // TILE), columns // (run * halves), TILE * run])

    def codes() -> ir.Tensor[Any]:
        found = (weight.data.numpy().astype(np.int16) - lowest).astype(np.uint8)
        found = _tiled(found).reshape(-1, TILE, columns // (run * halves), halves, run)
        low = found[:, :, :, 0]
        both = low | found[:, :, :, 1] << 4 if halves == 2 else low
        return ir.Tensor(both.transpose(0, 2, 1, 3).reshape(shape.numpy()))

    zeros: int | ir.TensorProtocol = -lowest
    if weight.zero_point is not None:
        points = (weight.zero_point.numpy().astype(np.int16) - lowest).astype(np.uint8)
        points = points.reshape(rows, columns // weight.block)
        same = points.size and bool((points == points.flat[0]).all())
        zeros = int(points.flat[0]) if same else ir.Tensor(_by_tile(points))
    return PackedBlocks(
        rows,
        columns,
        weight.block,
        halves,
        run,
        ir.LazyTensor(codes, dtype=ir.DataType.UINT8, shape=shape),
        _floats(weight.scale, rows, halves_exact),
        zeros,
        None if weight.offset is None else _floats(weight.offset, rows, halves_exact),
    )


def _tiled(array: Array) -> Array:
    return np.pad(array, ((0, -len(array) % TILE), *(((0, 0),) * (array.ndim - 1))))


def _by_tile(array: Array) -> Array:
    """[rows, blocks] → [tiles, blocks, 16]."""
    return np.ascontiguousarray(_tiled(array).reshape(-1, TILE, array.shape[1]).transpose(0, 2, 1))


def _floats(tensor: ir.TensorProtocol, rows: int, halves_exact: bool) -> ir.Tensor[Any]:
    array: Any = tensor.numpy().astype(np.float32).reshape(rows, -1)
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    array = half if halves_exact and np.array_equal(half.astype(np.float32), array) else array
    return ir.Tensor(_by_tile(array))
