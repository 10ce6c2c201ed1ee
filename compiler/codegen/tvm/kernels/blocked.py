"""Products with int8 and int4 weights in blocks: weights are widened in registers, never in memory.

Two ways. ``matmul`` multiplies float32 numbers: the result of DequantizeLinear and MatMul but for the order
of sums. ``matmul_integers`` (blocked_integers.py) rounds activations to 8 bits by block as well.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ....ir.quantized import BlockedWeight
from . import groups
from .blocked_pack import TILE, PackedBlocks, declines, pack
from .build import Body, prim_func
from .groups import Input, Rows, epilogue, tasks, whole_and_last
from .kernel import Cpu, Kernel
from .math import ACTIVATIONS

__all__ = ["declines", "matmul"]

_SUMS = 4
"""Side by side, at most: what the latency of an FMA needs where rows go one at a time."""


def matmul(
    weight: BlockedWeight, rows: int | None, cpu: Cpu, *, bias: bool = False, activation: str = ""
) -> Kernel:
    """x[rows, K] (, bias[N]) → activation(x @ weight.T + bias)[rows, N] of a weight[N, K]."""
    packed = pack(weight, 1, cpu.lanes > 4)
    name = f"blocked_matmul_int{weight.bits}_{packed.columns}x{packed.rows}" + f"_{activation}" * bool(
        activation
    )
    return Kernel(name, prim_func(name, partial(_write, packed, rows, cpu, bias, activation)), packed.arrays)


def parameters(b: Body, packed: PackedBlocks) -> tuple[Any, Any, Any, Any]:
    """Codes, scales, zeros and offsets: buffers, but ``zeros`` may be a number and ``offsets`` None."""
    arrays = iter(packed.arrays)

    def buffer(name: str) -> Any:
        tensor = next(arrays)
        return b.buffer(name, tensor.shape.numpy(), tensor.dtype.numpy().name)

    codes, scales = buffer("codes"), buffer("scales")
    zeros = packed.zeros if isinstance(packed.zeros, int) else buffer("zeros")
    return codes, scales, zeros, None if packed.offsets is None else buffer("offsets")


def _write(packed: PackedBlocks, rows: int | None, cpu: Cpu, bias: bool, activation: str, b: Body) -> None:
    count = b.variable("rows") if rows is None else rows
    x = b.buffer("x", (count, packed.columns))
    added = b.buffer("bias", (packed.rows,)) if bias else None
    codes, scales, zeros, offsets = parameters(b, packed)
    y = b.buffer("y", (count, packed.rows))
    taken = Rows.of(b, x, rows, count, packed.columns, cpu)
    follow = ACTIVATIONS[activation] if activation else None
    halves, steps = packed.halves, packed.block // packed.halves

    def tile(t: Any, lanes: int, row: Any, group: int, source: Input) -> None:
        sums = groups.sums(group, _SUMS)
        acc = b.local(group * sums, TILE)
        scale, shift, wide = b.local(TILE), b.local(TILE), b.local(TILE)
        b.fill(acc, 0.0)
        with b.serial(packed.columns // packed.block) as block:
            with b.vector(TILE) as v:
                b.store(scale, scales[t, block, v].astype("float32"), v)
            with b.vector(TILE) as v:
                zero = zeros if isinstance(zeros, int) else zeros[t, block, v].astype("float32")
                moved = b.ir.float32(0.0) - scale[v] * zero
                b.store(
                    shift, moved if offsets is None else moved + offsets[t, block, v].astype("float32"), v
                )
            with b.serial(steps // (_SUMS // halves)) as step:
                for u in range(_SUMS // halves):
                    at = block * steps + step * (_SUMS // halves) + u
                    for h in range(halves):
                        with b.vector(TILE) as v:
                            code = codes[t, at, v].astype("int32")
                            code = code if halves == 1 else code >> 4 if h else code & 15
                            b.store(wide, code.astype("float32") * scale[v] + shift[v], v)
                        for g in range(group):
                            into = g * sums + (u * halves + h) % sums
                            with b.vector(TILE) as v:
                                product = source(g, at * halves + h) * wide[v]
                                b.store(acc, acc[into, v] + product, into, v)
        for g in range(group):
            with b.vector(lanes) as v:
                total = acc[g * sums, v]
                for u in range(1, sums):
                    total = total + acc[g * sums + u, v]
                b.store(y, total, row + g, t * TILE + v)
        epilogue(b, y, added, follow, row, t * TILE, (group, lanes))

    parts = tasks(packed.columns * packed.rows // packed.halves, packed.tiles, cpu)
    with (
        b.parallel(parts) as task,
        b.span(packed.tiles * task // parts, packed.tiles * (task + 1) // parts) as t,
    ):
        whole_and_last(b, t, packed.rows, TILE, lambda lanes: taken.each(partial(tile, t, lanes)))
