"""Block-sparse MatMul: a constant weight whose blocks of 16 outputs by one input are mostly zero.

A tile is 16 outputs; its blocks that are not zero lie in a row, with the input each belongs to. Tiles have as
many blocks as they have, padded to a multiple of ``UNROLL``: that many sums may run side by side, as the
latency of an FMA needs where few rows go together.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import numpy as np
import onnx_ir as ir

from ....ir.constants import read_once
from ....reference import Array
from . import groups
from .build import Body, prim_func
from .groups import Input, Rows, epilogue, tasks, whole_and_last
from .kernel import Cpu, Kernel
from .math import ACTIVATIONS

TILE = 16
UNROLL = 4

LOOK = 64
"""Rows of a weight that tell whether it may be sparse at all."""

DENSE = 0.6
"""Share of blocks besides zero from which a product is taken for dense: time goes by the blocks, and below
this it is less than that of ONNX Runtime's dense product at any number of rows
(``benchmarks/results/tvm-kernels.md``)."""


class Packed:
    """A weight[N, K] as the kernel reads it: arrays of blocks, padded.

    ``starts``: int32[tiles + 1], the first block of each tile. ``columns``: uint16 or int32[blocks].
    ``bounds``: int32[tasks + 1], tiles cut so that all tasks have about as many blocks.
    """

    def __init__(self, tensor: ir.TensorProtocol, transposed: bool, tasks: int) -> None:
        self._tensor, self._transposed = tensor, transposed
        shape = tensor.shape.numpy()
        self.outputs, self.inputs = shape if transposed else shape[::-1]
        mask = self._mask()
        counts = mask.sum(1)
        padded = -(-counts // UNROLL) * UNROLL
        self.starts = np.concatenate([[0], padded.cumsum()]).astype(np.int32)
        self._at = self.starts[:-1].repeat(counts) + _positions(counts)
        found = np.nonzero(mask)
        self._tiles, self._inputs = found
        last = np.where(counts, mask.shape[1] - 1 - mask[:, ::-1].argmax(1), 0)
        columns = last.repeat(padded)
        columns[self._at] = self._inputs
        self.columns = columns.astype(np.uint16 if self.inputs <= 1 << 16 else np.int32)
        share = np.linspace(0, self.starts[-1], tasks + 1)
        bounds = np.searchsorted(self.starts, share)
        bounds[-1] = len(counts)
        self.bounds = bounds.astype(np.int32)

    @cached_property
    def blocks(self) -> int:
        """How many are stored, padding with them."""
        return int(self.starts[-1])

    def values(self) -> ir.Tensor[Any]:
        """float32[blocks, 16]."""
        values = np.zeros((self.blocks, TILE), np.float32)
        values[self._at] = self._tiled()[self._tiles, :, self._inputs]
        return ir.Tensor(values)

    def _tiled(self) -> Array:
        """float32[tiles, 16, K]; of a weight[N, K] with N a multiple of 16 a view."""
        array = read_once(self._tensor)
        array = array if self._transposed else array.T
        array = np.pad(array, ((0, -self.outputs % TILE), (0, 0))) if self.outputs % TILE else array
        tiles: Array = array.reshape(-1, TILE, self.inputs)
        return tiles

    def _mask(self) -> Array:
        mask: Array = np.any(self._tiled() != 0, axis=1)
        return mask


def _positions(counts: Array) -> Array:
    """0, 1, … within each group."""
    found: Array = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    return found


def declines(weight: ir.TensorProtocol, transposed: bool) -> str | None:
    """Why a product with ``weight`` had better stay dense. ``transposed``: it is [N, K], else [K, N]."""
    if weight.dtype != ir.DataType.FLOAT or len(weight.shape) != 2:
        return "weight is no float32 matrix"
    shape = weight.shape.numpy()
    outputs, inputs = shape if transposed else shape[::-1]
    if outputs < TILE or not inputs:
        return f"weight has fewer than {TILE} outputs"
    array = read_once(weight)
    for part in (array[:LOOK], array):  # a look at the beginning spares reading dense weights
        tiles = part if transposed else part.T
        tiles = tiles[: len(tiles) // TILE * TILE].reshape(-1, TILE, tiles.shape[1])
        share = float(np.any(tiles != 0, axis=1).mean())
        if share > DENSE:
            return (
                f"{share:.0%} of its blocks of {TILE} outputs by 1 input are not zero, more than {DENSE:.0%}"
            )
    return None


def matmul(
    weight: ir.TensorProtocol,
    rows: int | None,
    cpu: Cpu,
    *,
    transposed: bool = False,
    bias: bool = False,
    activation: str = "",
) -> Kernel:
    """x[rows, K] (, bias[N]) → activation(x @ weight + bias)[rows, N]; weight[K, N], [N, K] if transposed.

    ``activation``: a key of ``math.ACTIVATIONS``.
    """
    size = int(np.prod(weight.shape.numpy())) * 4
    tiles = -(-weight.shape.numpy()[0 if transposed else 1] // TILE)
    packed = Packed(weight, transposed, tasks(size, tiles, cpu))
    name = f"sparse_matmul_{packed.inputs}x{packed.outputs}" + f"_{activation}" * bool(activation)
    function = prim_func(name, partial(_write, packed, rows, cpu, bias, activation))
    shape = ir.Shape([packed.blocks, TILE])
    values = ir.LazyTensor(packed.values, dtype=ir.DataType.FLOAT, shape=shape)
    return Kernel(name, function, (values, *map(ir.Tensor, (packed.columns, packed.starts, packed.bounds))))


def _write(packed: Packed, rows: int | None, cpu: Cpu, bias: bool, activation: str, b: Body) -> None:
    tiles, inputs, outputs = len(packed.starts) - 1, packed.inputs, packed.outputs
    count = b.variable("rows") if rows is None else rows
    blocks = b.variable("blocks")  # no constant: layers of one shape share the function
    x = b.buffer("x", (count, inputs))
    added = b.buffer("bias", (outputs,)) if bias else None
    values = b.buffer("values", (blocks, TILE))
    columns = b.buffer("columns", (blocks,), packed.columns.dtype.name)
    starts = b.buffer("starts", (tiles + 1,), "int32")
    bounds = b.buffer("bounds", packed.bounds.shape, "int32")
    y = b.buffer("y", (count, outputs))
    taken = Rows.of(b, x, rows, count, inputs, cpu)
    follow = ACTIVATIONS[activation] if activation else None

    def tile(t: Any, lanes: int, row: Any, group: int, source: Input) -> None:
        sums = groups.sums(group, UNROLL)
        acc = b.local(group * sums, TILE)
        b.fill(acc, 0.0)
        with b.serial((starts[t + 1] - starts[t]) // sums) as p:
            for u in range(sums):
                at = starts[t] + p * sums + u
                for g in range(group):
                    with b.vector(TILE) as v:
                        product = source(g, columns[at].astype("int32")) * values[at, v]
                        b.store(acc, acc[g * sums + u, v] + product, g * sums + u, v)
        for g in range(group):
            with b.vector(lanes) as v:
                total = acc[g * sums, v]
                for u in range(1, sums):
                    total = total + acc[g * sums + u, v]
                b.store(y, total, row + g, t * TILE + v)
        epilogue(b, y, added, follow, row, t * TILE, (group, lanes))

    with b.parallel(len(packed.bounds) - 1) as task, b.span(bounds[task], bounds[task + 1]) as t:
        whole_and_last(b, t, outputs, TILE, lambda lanes: taken.each(partial(tile, t, lanes)))
