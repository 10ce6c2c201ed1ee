"""Products with int8 and int4 weights in 8-bit integers (AVX512-VNNI): activations are rounded by block.

As ONNX Runtime's MatMulNBits at accuracy level 4: each block of a row gets a scale of its own, its greatest
magnitude becomes 127.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ....ir.quantized import BlockedWeight
from . import blocked_pack
from .blocked import parameters
from .blocked_pack import TILE, PackedBlocks, pack
from .build import Body, prim_func
from .groups import epilogue, sizes, tasks, whole_and_last
from .kernel import Cpu, Kernel
from .math import ACTIVATIONS
from .sweep import fold

_RUN = 4
"""Products that one lane of the instruction adds up."""

_GROUP = 8
"""Most rows at a time: as many registers of sums again hold the floats."""


def declines(weight: BlockedWeight, cpu: Cpu) -> str | None:
    """Why the kernel can't take ``weight`` or does not run on ``cpu``."""
    if not cpu.vnni:
        return "the CPU has no AVX512-VNNI"
    return blocked_pack.declines(weight)


def matmul_integers(
    weight: BlockedWeight, rows: int | None, cpu: Cpu, *, bias: bool = False, activation: str = ""
) -> Kernel:
    """x[rows, K] (, bias[N]) → activation(round(x) @ weight.T + bias)[rows, N] of a weight[N, K]."""
    packed = pack(weight, _RUN, cpu.lanes > 4)
    name = f"blocked_integers_int{weight.bits}_{packed.columns}x{packed.rows}" + f"_{activation}" * bool(
        activation
    )
    return Kernel(name, prim_func(name, partial(_write, packed, rows, cpu, bias, activation)), packed.arrays)


def _write(packed: PackedBlocks, rows: int | None, cpu: Cpu, bias: bool, activation: str, b: Body) -> None:
    count = b.variable("rows") if rows is None else rows
    x = b.buffer("x", (count, packed.columns))
    added = b.buffer("bias", (packed.rows,)) if bias else None
    codes, scales, zeros, offsets = parameters(b, packed)
    y = b.buffer("y", (count, packed.rows))
    rounded, steps, sums = _round(b, x, packed, count)
    follow = ACTIVATIONS[activation] if activation else None
    parts, bytes_ = packed.block // (_RUN * packed.halves), TILE * _RUN

    def tile(t: Any, lanes: int, row: Any, group: int) -> None:
        acc, dots = b.local(group, TILE), b.local(group, TILE, dtype="int32")
        scale, zero = b.local(TILE), b.local(TILE)
        low = b.local(TILE, dtype="int32")
        b.fill(acc, 0.0)
        with b.serial(packed.columns // packed.block) as block:
            with b.vector(TILE) as v:
                b.store(scale, scales[t, block, v].astype("float32"), v)
            if not isinstance(zeros, int):
                with b.vector(TILE) as v:
                    b.store(zero, zeros[t, block, v].astype("float32"), v)
            for g in range(group):
                with b.vector(TILE) as v:
                    b.store(dots, 0, g, v)
            for part in range(parts):
                words = b.words(codes, (t, block * parts + part, 0), bytes_)
                for h in range(packed.halves):
                    b.store(low, _half(words, h, packed.halves), b.ir.ramp(0, 1, TILE))
                    for g in range(group):
                        at = block * packed.block + (part * packed.halves + h) * _RUN
                        input_ = b.words(rounded, (row + g, at), _RUN)
                        span = b.ir.ramp(0, 1, TILE)
                        product = _dot(dots[g, span], low[span], input_)
                        b.store(dots, product, g, span)
            for g in range(group):
                step, total = steps[row + g, block], sums[row + g, block]
                with b.vector(TILE) as v:
                    z = float(zeros) if isinstance(zeros, int) else zero[v]
                    value = (dots[g, v].astype("float32") - total * z) * (scale[v] * step)
                    if offsets is not None:
                        value = value + offsets[t, block, v].astype("float32") * (step * total)
                    b.store(acc, acc[g, v] + value, g, v)
        for g in range(group):
            with b.vector(lanes) as v:
                b.store(y, acc[g, v], row + g, t * TILE + v)
        epilogue(b, y, added, follow, row, t * TILE, (group, lanes))

    def all_rows(t: Any, lanes: int) -> None:
        done: Any = 0
        for group in sizes(rows, cpu, _GROUP):
            turns = (count - done) // group
            with b.serial(turns) as i:
                tile(t, lanes, done + i * group, group)
            done = done + turns * group

    cut = tasks(packed.columns * packed.rows // packed.halves, packed.tiles, cpu)
    with b.parallel(cut) as task, b.span(packed.tiles * task // cut, packed.tiles * (task + 1) // cut) as t:
        whole_and_last(b, t, packed.rows, TILE, partial(all_rows, t))


def _half(words: Any, half: int, halves: int) -> Any:
    """int32x16 of codes from 0 up: the low or the high four bits of each byte, or all eight."""
    from tvm import tirx

    if halves == 1:
        return words
    mask = tirx.Broadcast(tirx.const(0x0F0F0F0F, "int32"), TILE)
    return ((words >> tirx.Broadcast(tirx.const(4, "int32"), TILE)) if half else words) & mask


def _dot(sums: Any, codes: Any, input_: Any) -> Any:
    """``sums`` + the four products of each lane: of unsigned codes and the signed inputs of one word."""
    from tvm import tirx

    wide = tirx.Broadcast(input_, TILE)
    bytes_ = (tirx.reinterpret("uint8x64", codes), tirx.reinterpret("int8x64", wide))
    name = "llvm.x86.avx512.vpdpbusd.512"
    return tirx.call_llvm_pure_intrin("int32x16", name, sums, *bytes_)


def _round(b: Body, x: Any, packed: PackedBlocks, count: Any) -> tuple[Any, Any, Any]:
    """int8[count, K], and of each block the scale and the sum as float32[count, K / block]."""
    from tvm import tirx

    blocks, block = packed.columns // packed.block, packed.block
    rounded = b.scratch(count, packed.columns, dtype="int8")
    steps, sums = b.scratch(count, blocks), b.scratch(count, blocks)
    with b.parallel(count) as row, b.serial(blocks) as at:
        most, total, code = b.local(TILE), b.local(TILE), b.local(TILE)
        b.fill(most, 0.0)
        with b.serial(block // TILE) as i, b.vector(TILE) as v:
            b.store(most, tirx.max(most[v], tirx.abs(x[row, at * block + i * TILE + v])), v)
        peak = fold(b, most, tirx.max)
        inverse = b.local(1)
        b.store(steps, peak[0] * b.ir.float32(1 / 127), row, at)
        b.store(inverse, tirx.Select(peak[0] > 0, 127.0 / tirx.max(peak[0], 1e-30), 0.0), 0)
        b.fill(total, 0.0)
        with b.serial(block // TILE) as i:
            with b.vector(TILE) as v:
                value = x[row, at * block + i * TILE + v] * inverse[0]
                b.store(code, tirx.nearbyint(value), v)
            with b.vector(TILE) as v:
                b.store(total, total[v] + code[v], v)
            with b.vector(TILE) as v:
                b.store(rounded, code[v].astype("int32").astype("int8"), row, at * block + i * TILE + v)
        b.store(sums, fold(b, total, lambda p, q: p + q)[0], row, at)
    return rounded, steps, sums
