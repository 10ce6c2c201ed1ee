"""Products with a constant float32 matrix: tiles of 16 outputs, each in one stretch of memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.constants import read_once
from .kernels import groups
from .kernels.build import Body, prim_func
from .kernels.groups import Input, Rows, epilogue, tasks, whole_and_last
from .kernels.kernel import Cpu, Kernel
from .kernels.math import ACTIVATIONS

TILE = 16

_SUMS = 4
"""Side by side, at most: what the latency of an FMA needs where rows go one at a time."""


def packed(weight: ir.TensorProtocol, transposed: bool) -> ir.TensorProtocol:
    """float32[tiles, K, 16] of a weight[K, N], or [N, K] if ``transposed``; computed when it is stored."""
    inputs, outputs = _sizes(weight, transposed)
    shape = ir.Shape([-(-outputs // TILE), inputs, TILE])

    def values() -> ir.Tensor[Any]:
        array = read_once(weight) if transposed else read_once(weight).T
        array = np.pad(array, ((0, -outputs % TILE), (0, 0)))
        return ir.Tensor(np.ascontiguousarray(array.reshape(-1, TILE, inputs).transpose(0, 2, 1)))

    return ir.LazyTensor(values, dtype=ir.DataType.FLOAT, shape=shape)


def matmul(
    weight: ir.TensorProtocol,
    rows: int | None,
    cpu: Cpu,
    *,
    transposed: bool = False,
    bias: bool = False,
    activation: str = "",
) -> Kernel:
    """x[rows, K] (, bias[N]) → activation(x @ weight + bias)[rows, N]; weight[K, N], [N, K] if transposed."""
    sizes = _sizes(weight, transposed)
    name = f"matmul_{sizes[0]}x{sizes[1]}" + f"_{activation}" * bool(activation)
    function = prim_func(name, partial(_write, sizes, rows, cpu, bias, activation))
    return Kernel(name, function, (packed(weight, transposed),))


def _sizes(weight: ir.TensorProtocol, transposed: bool) -> tuple[int, int]:
    first, second = weight.shape.numpy()
    return (second, first) if transposed else (first, second)


def _write(sizes: tuple[int, int], rows: int | None, cpu: Cpu, bias: bool, activation: str, b: Body) -> None:
    inputs, outputs = sizes
    tiles = -(-outputs // TILE)
    count = b.variable("rows") if rows is None else rows
    x = b.buffer("x", (count, inputs))
    added = b.buffer("bias", (outputs,)) if bias else None
    values = b.buffer("values", (tiles, inputs, TILE))
    y = b.buffer("y", (count, outputs))
    taken = Rows.of(b, x, rows, count, inputs, cpu)
    follow = ACTIVATIONS[activation] if activation else None

    def tile(t: Any, lanes: int, row: Any, group: int, source: Input) -> None:
        sums = groups.sums(group, min(_SUMS, inputs))
        acc = b.local(group * sums, TILE)
        b.fill(acc, 0.0)

        def add(k: Any, u: int) -> None:
            for g in range(group):
                with b.vector(TILE) as v:
                    total = acc[g * sums + u, v] + source(g, k) * values[t, k, v]
                    b.store(acc, total, g * sums + u, v)

        with b.serial(inputs // sums) as p:
            for u in range(sums):
                add(p * sums + u, u)
        for rest in range(inputs // sums * sums, inputs):
            add(rest, 0)
        for g in range(group):
            with b.vector(lanes) as v:
                total = acc[g * sums, v]
                for u in range(1, sums):
                    total = total + acc[g * sums + u, v]
                b.store(y, total, row + g, t * TILE + v)
        epilogue(b, y, added, follow, row, t * TILE, (group, lanes))

    parts = tasks(4 * inputs * outputs, tiles, cpu)
    with b.parallel(parts) as task, b.span(tiles * task // parts, tiles * (task + 1) // parts) as t:
        whole_and_last(b, t, outputs, TILE, lambda lanes: taken.each(partial(tile, t, lanes)))
