"""Packing block-sparse float weights: of blocks of 16 rows by 1 column, those that are not zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from ....reference import Array
from .packed import TILE, PackedWeight

DENSE = 0.8
"""Share of blocks besides zero from which dense tiles are about as fast; benchmarks/bench_native_float.py."""

_CHUNK_COLUMNS = 512
_CHUNK = 1 << 16
"""Blocks that are packed at a time."""

_LINE = 64


def chunk_columns(columns: int) -> int:
    """Columns of the chunks that the kernels cut a row into; see ``chunks_of`` in kernels/linear_float.h.

    >>> chunk_columns(384), chunk_columns(768), chunk_columns(1030)
    (384, 384, 352)
    """
    count = -(-columns // _CHUNK_COLUMNS)
    return -(-columns // count // TILE) * TILE


def blocks(weight: Array) -> Array:
    """bool[tiles, columns]: which blocks of a weight[rows, columns] hold a number besides zero."""
    rows, columns = weight.shape
    full = rows // TILE
    parts = [np.any(weight[: full * TILE].reshape(full, TILE, columns), axis=1)]
    if rows > full * TILE:
        parts.append(np.any(weight[full * TILE :], axis=0, keepdims=True))
    return np.concatenate(parts)


def is_sparse(tensors: Sequence[ir.TensorProtocol]) -> bool:
    """Whether weights are worth packing as sparse. A look at their first tiles spares reading dense ones."""
    if any(t.dtype != ir.DataType.FLOAT for t in tensors):
        return False
    arrays = [t.numpy() for t in tensors]
    return all(
        array.size and blocks(part).mean() < DENSE for array in arrays for part in (array[: 4 * TILE], array)
    )


def pack_sparse(tensors: Sequence[ir.TensorProtocol]) -> PackedWeight:
    """Float32 weights of one shape [rows, columns], their tiles interleaved; see kernels/linear_sparse.h."""
    rows, columns = tensors[0].shape.numpy()
    masks = np.stack([blocks(t.numpy()) for t in tensors], 1).reshape(-1, columns)
    wide = chunk_columns(columns)
    bounds = np.arange(0, columns, wide)
    starts = np.concatenate(
        [[0], np.add.reduceat(masks, bounds, axis=1, dtype=np.int64).reshape(-1).cumsum()]
    )
    head = [
        _lines(starts.astype("<u4")),
        _lines((np.nonzero(masks)[1] % wide).astype("<u2")),
    ]
    size = sum(h.size for h in head) + int(starts[-1]) * TILE * 4

    def chunks() -> Iterator[Array]:
        yield from head
        arrays = [t.numpy() for t in tensors]
        step = max(1, _CHUNK // columns)
        for first in range(0, len(masks), step):
            yield _values(arrays, masks, range(first, min(len(masks), first + step)))

    return PackedWeight("WEIGHT_SPARSE", 0, rows, columns, size, chunks, tiled=False)


def _values(arrays: Sequence[Array], masks: Array, tiles: range) -> Array:
    """float32[blocks, 16] of some of the interleaved tiles."""
    found = []
    for tile in tiles:
        begin = tile // len(arrays) * TILE
        part = arrays[tile % len(arrays)][begin : begin + TILE, masks[tile]]
        found.append(np.pad(part, ((0, TILE - len(part)), (0, 0))).T)
    return np.ascontiguousarray(np.concatenate(found), dtype="<f4").reshape(-1).view(np.uint8)


def _lines(data: Array) -> Array:
    """Bytes, padded to whole cache lines."""
    flat = data.view(np.uint8)
    return np.pad(flat, (0, -flat.size % _LINE))
