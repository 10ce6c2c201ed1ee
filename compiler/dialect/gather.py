"""Rows of a blocked quantized table: com.microsoft GatherBlockQuantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import UnsupportedError
from ..reference import Array
from .base import Inferred, OpSchema, dtype_of, integer, parameters, shape_of


def gather_block_quantized(
    data: Array,
    indices: Array,
    scales: Array,
    zero_points: Array | None = None,
    *,
    bits: int,
    block_size: int,
    gather_axis: int,
    quantize_axis: int,
) -> tuple[Array]:
    """``(data - zero_point) * scale`` of the rows ``indices``; data: uint8[rows, columns * bits / 8].

    Codes are packed along the last axis, lowest bits first; scales: [rows, columns / block]. Zero points
    are packed like the data, half the range if left out.

    Raises: UnsupportedError for data that is not uint8, other axes.
    """
    if data.dtype != np.uint8 or data.ndim != 2 or gather_axis or quantize_axis not in (1, -1):
        raise UnsupportedError("GatherBlockQuantized", "only rows of a uint8 matrix have reference semantics")
    codes = unpacked(data[indices], bits).astype(np.float32)
    blocks = scales.shape[1]
    zeros: Array | float = float(1 << (bits - 1))
    if zero_points is not None:
        zeros = unpacked(zero_points[indices], bits)[..., :blocks, None].astype(np.float32)
    parts = (codes.reshape(*indices.shape, blocks, block_size) - zeros) * scales[indices][..., None]
    return (parts.reshape(*indices.shape, -1).astype(scales.dtype),)


def unpacked(packed: Array, bits: int) -> Array:
    """Codes of ``bits`` bits from bytes, lowest bits first, along the last axis."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, -1).reshape(*packed.shape[:-1], -1)


def _infer(node: ir.Node) -> Sequence[Inferred]:
    data, indices = shape_of(node, 0), shape_of(node, 1)
    bits = node.attributes.get_int("bits", 4)
    if data is None or indices is None or len(data) != 2 or node.attributes.get_int("gather_axis", 0) != 0:
        return ((dtype_of(node, 2), None),)
    packs = 8 // bits if dtype_of(node, 0) == ir.DataType.UINT8 else 1
    width = data[1] * packs if isinstance(data[1], int) else None
    return ((dtype_of(node, 2), ir.Shape([*indices, width])),)


def _flops(inputs: Any, outputs: Any, attributes: Any) -> float:
    return 2.0 * float(np.prod(outputs[0] or ()))


SCHEMAS = (
    OpSchema(
        "GatherBlockQuantized",
        parameters("data:T1 indices:Tind scales:T2 zero_points?:T1"),
        parameters("output:T2"),
        _infer,
        gather_block_quantized,
        {
            "bits": integer(4),
            "block_size": integer(128),
            "gather_axis": integer(0),
            "quantize_axis": integer(1),
        },
        _flops,
    ),
)
