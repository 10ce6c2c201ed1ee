"""RMSNorm, LayerNorm and softmax over rows, with the addition of a residual where one goes before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .build import Body, prim_func
from .kernel import Cpu, Kernel
from .math import exp_below_one
from .sweep import each_row, reduce, sweep


def rms_norm(
    rows: int | None, columns: int, cpu: Cpu, *, epsilon: float, skip: bool = False, scale: bool = True
) -> Kernel:
    """x[rows, C] (, skip[rows, C]) (, scale[C]) → (x + skip,) x / sqrt(mean(x²) + epsilon) * scale.

    With ``skip`` there are two outputs, first the sum that was normalized.
    """

    def body(b: Body) -> None:
        count = b.variable("rows") if rows is None else rows
        row = _Row(b, count, columns, skip)
        weight = b.buffer("scale", (columns,)) if scale else None
        y = row.outputs()
        with each_row(b, count, columns, cpu) as i:
            numbers = partial(row.at, i)
            squares = reduce(
                b, columns, cpu.lanes, 0.0, lambda at: numbers(at) * numbers(at), _add, row.sum(i)
            )
            factor = b.local(1)
            b.store(factor, b.ir.float32(1) / b.ir.sqrt(squares[0] * (1 / columns) + epsilon), 0)

            def write(at: Any, lanes: int) -> None:
                with b.vector(lanes) as v:
                    value = row.at(i, at + v) * factor[0]
                    b.store(y, value if weight is None else value * weight[at + v], i, at + v)

            sweep(b, columns, cpu.lanes, write)

    name = f"rms_norm_{columns}" + "_skip" * skip + "_scale" * scale
    return Kernel(name, prim_func(name, body))


def layer_norm(
    rows: int | None,
    columns: int,
    cpu: Cpu,
    *,
    epsilon: float,
    skip: bool = False,
    scale: bool = True,
    bias: bool = True,
) -> Kernel:
    """x[rows, C] (, skip[rows, C]) (, scale[C]) (, bias[C]) → (x + skip,) normalized rows * scale + bias.

    With ``skip`` there are two outputs, first the sum that was normalized. The variance is of differences
    from the mean, in a second pass.
    """

    def body(b: Body) -> None:
        count = b.variable("rows") if rows is None else rows
        row = _Row(b, count, columns, skip)
        weight = b.buffer("scale", (columns,)) if scale else None
        added = b.buffer("bias", (columns,)) if bias else None
        y = row.outputs()
        with each_row(b, count, columns, cpu) as i:
            total = reduce(b, columns, cpu.lanes, 0.0, partial(row.at, i), _add, row.sum(i))
            mean, factor = b.local(1), b.local(1)
            b.store(mean, total[0] * b.ir.float32(1 / columns), 0)

            def square(at: Any) -> Any:
                return (row.at(i, at) - mean[0]) * (row.at(i, at) - mean[0])

            squares = reduce(b, columns, cpu.lanes, 0.0, square, _add)
            b.store(factor, b.ir.float32(1) / b.ir.sqrt(squares[0] * (1 / columns) + epsilon), 0)

            def write(at: Any, lanes: int) -> None:
                with b.vector(lanes) as v:
                    value = (row.at(i, at + v) - mean[0]) * factor[0]
                    value = value if weight is None else value * weight[at + v]
                    b.store(y, value if added is None else value + added[at + v], i, at + v)

            sweep(b, columns, cpu.lanes, write)

    name = f"layer_norm_{columns}" + "_skip" * skip + "_scale" * scale + "_bias" * bias
    return Kernel(name, prim_func(name, body))


def softmax(rows: int | None, columns: int | None, cpu: Cpu) -> Kernel:
    """x[rows, C] → exp(x - max) / sum. ``columns`` None: any number. A row of -inf alone gives NaN."""
    from tvm import tirx

    def body(b: Body) -> None:
        count = b.variable("rows") if rows is None else rows
        width = b.variable("columns") if columns is None else columns
        x, y = b.buffer("x", (count, width)), b.buffer("y", (count, width))
        with each_row(b, count, width, cpu) as i:
            most = reduce(b, width, cpu.lanes, -float("inf"), lambda at: x[i, at], tirx.max)

            def grow(at: Any, lanes: int) -> None:
                with b.vector(lanes) as v:
                    b.store(y, exp_below_one(x[i, at + v] - most[0]), i, at + v)

            total = reduce(b, width, cpu.lanes, 0.0, lambda at: y[i, at], _add, grow)
            factor = b.local(1)
            b.store(factor, b.ir.float32(1) / total[0], 0)

            def write(at: Any, lanes: int) -> None:
                with b.vector(lanes) as v:
                    b.store(y, y[i, at + v] * factor[0], i, at + v)

            sweep(b, width, cpu.lanes, write)

    name = "softmax" if columns is None else f"softmax_{columns}"
    return Kernel(name, prim_func(name, body))


def _add(a: Any, b: Any) -> Any:
    return a + b


class _Row:
    """What is normalized: x, or the sum x + skip, which is written first."""

    def __init__(self, b: Body, count: Any, columns: int, skip: bool) -> None:
        self._b, self._shape = b, (count, columns)
        self._x = b.buffer("x", self._shape)
        self._skip: Any = b.buffer("skip", self._shape) if skip else None
        self._read: Any = self._x

    def outputs(self) -> Any:
        """Declares the sum, if any, and the result, which is returned."""
        if self._skip is not None:
            self._read = self._b.buffer("sum", self._shape)
        return self._b.buffer("y", self._shape)

    def sum(self, i: Any) -> Callable[[Any, int], None] | None:
        """What writes the sum of some columns of row i, if there is one."""
        skip = self._skip
        if skip is None:
            return None

        def write(at: Any, lanes: int) -> None:
            with self._b.vector(lanes) as v:
                self._b.store(self._read, self._x[i, at + v] + skip[i, at + v], i, at + v)

        return write

    def at(self, i: Any, column: Any) -> Any:
        """A number of a row."""
        return self._read[i, column]
