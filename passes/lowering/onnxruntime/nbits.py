"""Blocked weights as ONNX Runtime stores them: unsigned codes by block, zero points packed by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....compiler.ir.quantized import BlockedWeight
from ....compiler.reference import Array

SIGNED = (ir.DataType.INT4, ir.DataType.INT8)
DTYPES = (ir.DataType.UINT4, ir.DataType.UINT8, *SIGNED)
SCALES = {
    "cpu": (ir.DataType.FLOAT,),
    "cuda": (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
}
"""What scales, and activations with them, may be, by device."""


@dataclass(frozen=True, slots=True)
class NBits:
    """``weight[n, k] = (code[n, k] - zero[n, b]) * scale[n, b] + shift[b, n]`` with ``b = k // block``.

    ``codes``: uint8[rows, blocks, block * bits / 8], low bits first; ``table``: the same bytes as
    uint8[rows, columns * bits / 8]. ``scale``: float[rows, blocks]. ``zero``: uint8[rows, ceil(blocks *
    bits / 8)], None is half the range. ``shift``: float[blocks, rows], None is 0.
    """

    codes: ir.TensorProtocol
    table: ir.TensorProtocol
    scale: ir.TensorProtocol
    zero: ir.TensorProtocol | None
    shift: ir.TensorProtocol | None
    bits: int
    block: int
    shape: tuple[int, int]

    def refusal(self, device: str) -> str:
        """Why the kernels of ``device``, cpu or cuda, don't take it, or nothing."""
        if self.block < 16 or self.block & (self.block - 1):
            return f"blocks of {self.block} columns are no power of two from 16 on"
        if device == "cuda" and self.block > 128:
            return f"blocks of {self.block} columns are wider than the 128 that CUDA kernels take"
        if self.scale.dtype not in SCALES[device]:
            return f"there is no {device.upper()} kernel for scales of {self.scale.dtype}"
        return ""


def nbits(weight: BlockedWeight) -> NBits:
    """``weight`` repacked, value for value the same; computed when it is written, tensor by tensor."""
    rows, columns = weight.shape
    bits, blocks, half = weight.bits, columns // weight.block, 1 << (weight.bits - 1)
    data, zero, offset, scale = weight.data, weight.zero_point, weight.offset, weight.scale
    signed = data.dtype in SIGNED
    lift = half if signed else 0
    centre = half - lift  # what the kernel's own zero is in the data's numbers
    shift: ir.TensorProtocol | None = None
    if offset is not None:
        if zero is None and not signed:
            # The products of codes are rounded, those of the shift are not: keep the codes small.
            lift, centre = _recentred(data, half)
        shift = _lazy(
            lambda: _shift(offset, scale, centre if zero is None else 0), (blocks, rows), scale.dtype
        )
    packed: ir.TensorProtocol | None = None
    if zero is not None or (centre and offset is None):
        packed = _lazy(lambda: _zeros(zero, rows, blocks, bits, lift), (rows, -(-blocks * bits // 8)))
    codes = _lazy(lambda: _codes(data, lift), (rows, blocks, weight.block * bits // 8))
    table = _lazy(lambda: _codes(data, lift), (rows, columns * bits // 8))
    return NBits(codes, table, scale, packed, shift, bits, weight.block, (rows, columns))


def _recentred(data: ir.TensorProtocol, half: int) -> tuple[int, int]:
    """What to add to unsigned codes so that their middle is the kernel's zero, and that middle."""
    if data.dtype == ir.DataType.UINT4:
        return 0, half
    used = max(1, int(data.numpy().max(initial=0)).bit_length())
    return half - (1 << (used - 1)), 1 << (used - 1)


def _codes(data: ir.TensorProtocol, lift: int) -> Array:
    if data.dtype.bitwidth == 4:
        return np.frombuffer(data.tobytes(), np.uint8) ^ np.uint8(0x88 if lift else 0)
    return data.numpy().view(np.uint8) + np.uint8(lift)  # wraps: -128 becomes 0


def _shift(offset: ir.TensorProtocol, scale: ir.TensorProtocol, centre: int) -> Array:
    """[blocks, rows]: the offset of codes counted from ``centre``."""
    moved = offset.numpy().astype(np.float64) + centre * scale.numpy().astype(np.float64)
    return np.ascontiguousarray(moved.T).astype(scale.dtype.numpy())


def _zeros(zero: ir.TensorProtocol | None, rows: int, blocks: int, bits: int, lift: int) -> Array:
    codes = np.zeros((rows, blocks), np.uint8)
    if zero is not None:
        codes = (zero.numpy().astype(np.int16) + lift).astype(np.uint8).reshape(rows, blocks)
    if bits == 8:
        return codes
    padded = np.pad(codes, ((0, 0), (0, blocks % 2)))
    packed: Array = padded[:, 0::2] | (padded[:, 1::2] << 4)
    return packed


def _lazy(
    compute: Callable[[], Array], shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.UINT8
) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.tensor(np.ascontiguousarray(compute()).reshape(shape), dtype=dtype),
        dtype=dtype,
        shape=ir.Shape(shape),
    )
