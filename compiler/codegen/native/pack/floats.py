"""Packing float weights in the width they have: tiles of 16 rows, column by column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ....dialect.linear import ACTIVATION_DTYPE
from ....ir.constants import constant_tensor
from ....reference import Array
from ..constants import array_of
from .packed import TILE, PackedWeight
from .sparse import is_sparse, pack_sparse

FORMATS = {
    ir.DataType.FLOAT: "WEIGHT_F32",
    ir.DataType.FLOAT16: "WEIGHT_F16",
    ir.DataType.BFLOAT16: "WEIGHT_BF16",
}
"""dtypes and the C enumerators of their formats; see ``kernels/linear_float.h``."""

_CHUNK = 1 << 22
"""Bytes that are packed at a time."""


def pack_floats(value: ir.Value, up: ir.Value | None = None) -> PackedWeight:
    """The constant ``value`` [rows, columns] packed; ``up``: of a gated layer, tile by tile behind it.

    What a Cast widens is packed as it was stored; a pair of two widths, and what is neither, as float32.
    A float32 weight most of whose blocks of 16 rows by 1 column are zero is packed without them.
    """
    tensors = [float_tensor(v) for v in (value, up) if v is not None]
    return pack_sparse(tensors) if is_sparse(tensors) else pack_tensors(tensors)


def float_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of a constant weight as it is stored: float32, float16 or bfloat16."""
    node = value.producer()
    cast = node is not None and node.op_type == "Cast" and node.domain == ""
    tensor = constant_tensor(node.inputs[0] if node is not None and cast else value)
    if tensor is not None and tensor.dtype in FORMATS:
        return tensor
    return ir.LazyTensor(
        lambda: ir.Tensor(array_of(value).astype(np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape(value.shape if value.shape is not None else array_of(value).shape),
    )


def pack_tensors(tensors: Sequence[ir.TensorProtocol]) -> PackedWeight:
    """Float tensors of one shape [rows, columns], their tiles interleaved."""
    dtypes = {t.dtype for t in tensors}
    dtype = dtypes.pop() if len(dtypes) == 1 else ir.DataType.FLOAT
    rows, columns = tensors[0].shape.numpy()
    tiles = -(-rows // TILE)
    size = len(tensors) * tiles * TILE * _padded(columns, dtype) * dtype.itemsize
    both = dtype == ir.DataType.BFLOAT16 and all(_rounds_activations(t) for t in tensors)
    form = FORMATS[dtype] + "_BOTH" * both
    return PackedWeight(form, 0, rows, columns, int(size), lambda: _chunks(tensors, dtype))


def _rounds_activations(tensor: ir.TensorProtocol) -> bool:
    return getattr(tensor, "metadata_props", {}).get(ACTIVATION_DTYPE) == ir.DataType.BFLOAT16.name


def _padded(columns: int, dtype: ir.DataType) -> int:
    return columns + columns % 2 if dtype == ir.DataType.BFLOAT16 else columns


def _chunks(tensors: Sequence[ir.TensorProtocol], dtype: ir.DataType) -> Iterator[Array]:
    arrays = [t.numpy() for t in tensors]
    rows, columns = arrays[0].shape
    step = max(1, _CHUNK // max(1, TILE * columns * 4)) * TILE
    for begin in range(0, rows, step):
        parts = [tiled(a[begin : begin + step], dtype) for a in arrays]
        yield np.stack(parts, 1).reshape(-1).view(np.uint8)


def tiled(weight: Array, dtype: ir.DataType) -> Array:
    """[tiles, columns, 16] of rows padded with zeros to whole tiles; bfloat16: [tiles, columns / 2, 16, 2].

    >>> tiled(np.arange(6, dtype=np.float32).reshape(2, 3), ir.DataType.FLOAT)[0, :, :2].tolist()
    [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    """
    rows, columns = weight.shape
    padded = np.zeros((-(-rows // TILE) * TILE, _padded(columns, dtype)), dtype.numpy())
    padded[:rows, :columns] = weight
    tiles = padded.reshape(-1, TILE, padded.shape[1])
    if dtype == ir.DataType.BFLOAT16:
        return np.ascontiguousarray(tiles.reshape(len(tiles), TILE, -1, 2).transpose(0, 2, 1, 3))
    return np.ascontiguousarray(tiles.transpose(0, 2, 1))
