"""MatMul in tensor cores: tiles in shared memory, several on their way while one is multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from .cuda_parts import CHUNK, DTYPES, MMA, WARP, Device, device_func
from .kernel import Kernel


@dataclass(frozen=True, slots=True)
class Tiles:
    """A block computes ``rows × columns`` of the result in steps of ``depth``, by ``down × across`` warps.

    ``stages``: tiles of each factor in shared memory, all but one of them on their way.
    """

    rows: int
    columns: int
    depth: int = 32
    down: int = 2
    across: int = 2
    stages: int = 3

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.down * self.across * WARP


LARGE, MIDDLE = Tiles(128, 128), Tiles(64, 64)
SMALL = Tiles(16, 64, 64, 1, 4, 4)

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
"""That may follow the product."""

_BLOCKS = 100
"""A GPU of the data center runs about as many blocks at a time, one on each multiprocessor."""

_FEW = 4
"""Rows up to which the product is bound by reading the right factor: no work for tensor cores."""


def declines(rows: int | None, inputs: int, outputs: int, dtype: str) -> str | None:
    """Why the kernel does not fit: sizes that are cut into 16 bytes, and enough rows."""
    if dtype not in DTYPES:
        return f"{dtype} has no tensor-core kernel of ours, {' and '.join(DTYPES)} have"
    if inputs % CHUNK or outputs % CHUNK:
        return f"{inputs} inputs and {outputs} outputs are not both multiples of {CHUNK}"
    if rows is not None and rows <= _FEW:
        return f"{rows} rows are too few for tensor cores"
    return None


def tiles_for(rows: int | None, outputs: int) -> Tiles:
    """Tiles that leave few multiprocessors idle; an unknown number of rows counts as 512."""
    count = 512 if rows is None else rows
    if count <= SMALL.rows:
        return SMALL
    blocks = -(-count // LARGE.rows) * -(-outputs // LARGE.columns)
    return LARGE if count > MIDDLE.rows and blocks >= _BLOCKS else MIDDLE


def matmul(
    rows: int | None,
    inputs: int,
    outputs: int,
    dtype: str,
    *,
    transposed: bool = False,
    bias: bool = False,
    activation: str = "",
    batch: int | None = 1,
    tiles: Tiles | None = None,
) -> Kernel:
    """a[rows, K], b[K, N] ([N, K] if ``transposed``) (, bias[N]) → activation(a @ b + bias)[rows, N].

    All of ``dtype``, sums in float32. With ``batch`` other than 1 (None: any) a, b and the result have it as
    first dimension. ``activation``: "relu", "gelu", "gelu_tanh", "silu" or none.
    """
    made = tiles_for(rows, outputs) if tiles is None else tiles
    write = partial(_write, made, rows, (inputs, outputs), transposed, bias, activation, batch)
    marks = "_nk" * transposed + "_bias" * bias + f"_{activation}" * bool(activation)
    shape = f"{made.rows}x{made.columns}x{made.depth}"
    many = "" if batch == 1 else "_batched"
    name = f"tensor_matmul_{DTYPES[dtype]}_{inputs}x{outputs}{marks}{many}_{shape}"
    return Kernel(name, device_func(name, dtype, write))


def _write(
    t: Tiles,
    rows: int | None,
    sizes: tuple[int, int],
    transposed: bool,
    bias: bool,
    activation: str,
    batch: int | None,
    b: Device,
) -> None:
    from tvm import tirx

    inputs, outputs = sizes
    count = b.variable("rows") if rows is None else rows
    many = b.variable("batch") if batch is None else batch
    outer = () if batch == 1 else (many,)
    left = b.buffer("a", (*outer, count, inputs), b.dtype)
    right = b.buffer("b", (*outer, *((outputs, inputs) if transposed else (inputs, outputs))), b.dtype)
    added = b.buffer("bias", (outputs,), b.dtype) if bias else None
    result = b.buffer("y", (*outer, count, outputs), b.dtype)
    steps = -(-inputs // t.depth)
    down, across = t.rows // t.down // MMA, t.columns // t.across // MMA
    with (
        b.ir.launch_thread("blockIdx.z", many) as each,
        b.ir.launch_thread("blockIdx.y", (count + t.rows - 1) // t.rows) as block_row,
        b.ir.launch_thread("blockIdx.x", -(-outputs // t.columns)) as block_column,
        b.ir.launch_thread("threadIdx.x", t.threads) as thread,
    ):
        which = () if batch == 1 else (each,)
        top, first = block_row * t.rows, block_column * t.columns
        lane, warp = thread % WARP, thread // WARP
        warp_row, warp_column = (
            warp // t.across * (t.rows // t.down),
            warp % t.across * (t.columns // t.across),
        )
        of_b = (t.columns, t.depth) if transposed else (t.depth, t.columns)
        tile_a, tile_b = b.tiles((t.stages, t.rows, t.depth), (t.stages, *of_b))
        sums = b.registers(down * across * 8)
        part_a, part_b = b.registers(down * 8, dtype=b.dtype), b.registers(across * 8, dtype=b.dtype)
        for i in range(down * across * 8):
            b.store(sums, b.ir.float32(0), i)

        def fetch(step: Any, stage: Any) -> None:
            deep = step * t.depth

            def of_left(row: Any, column: Any) -> Any:
                there = tirx.all(top + row < count, deep + column < inputs)
                return left, (*which, top + row, deep + column), there

            def of_right(row: Any, column: Any) -> Any:
                n, k = (first + row, deep + column) if transposed else (first + column, deep + row)
                place = (n, k) if transposed else (k, n)
                return right, (*which, *place), tirx.all(n < outputs, k < inputs)

            b.fetch(tile_a, (stage,), (t.rows, t.depth), (thread, t.threads), of_left)
            b.fetch(tile_b, (stage,), of_b, (thread, t.threads), of_right)

        for step in range(t.stages - 1):
            if step < steps:
                fetch(step, step)
            b.end_copies()
        with b.serial(steps) as step:
            b.wait_for_copies(t.stages - 2)
            b.barrier()
            with b.ir.If(step + t.stages - 1 < steps), b.ir.Then():
                fetch(step + t.stages - 1, (step + t.stages - 1) % t.stages)
            b.end_copies()
            stage = step % t.stages
            for k in range(0, t.depth, MMA):
                for i in range(down):
                    b.load_left(tile_a, (stage, warp_row + i * MMA, k), lane, part_a, i * 8, turn=False)
                for j in range(across):
                    n = warp_column + j * MMA
                    place = (stage, n, k) if transposed else (stage, k, n)
                    b.load_right(tile_b, place, lane, part_b, j * 8, turn=not transposed)
                for i in range(down):
                    for j in range(across):
                        for half in range(2):
                            at = ((i * across + j) * 2 + half) * 4
                            b.product(part_a, i * 8, part_b, j * 8 + half * 4, sums, at)
        for i in range(down):
            for lower in range(2):
                row = top + warp_row + i * MMA + lower * 8 + lane // 4
                with b.ir.If(row < count), b.ir.Then():
                    for j in range(across * 2):
                        column = first + warp_column + j * 8 + lane % 4 * 2
                        with b.ir.If(column < outputs), b.ir.Then(), b.vector(2) as v:
                            total = sums[(i * across * 2 + j) * 4 + lower * 2 + v]
                            total = total if added is None else total + added[column + v].astype("float32")
                            value = follow(activation, total).astype(b.dtype)
                            b.store(result, value, *which, row, column + v)


def follow(activation: str, x: Any) -> Any:
    """The activation of a float32 expression, by CUDA's own functions."""
    from tvm import tirx

    one, half = tirx.const(1.0, "float32"), tirx.const(0.5, "float32")
    if activation == "":
        return x
    if activation == "relu":
        return tirx.Select(x < tirx.const(0.0, "float32"), tirx.const(0.0, "float32"), x)
    if activation == "gelu":
        return x * half * (one + tirx.erf(x * tirx.const(0.7071067811865476, "float32")))
    if activation == "gelu_tanh":
        inner = tirx.const(0.7978845608028654, "float32") * (x + tirx.const(0.044715, "float32") * x * x * x)
        return x * half * (one + tirx.tanh(inner))
    if activation == "silu":
        return x / (one + tirx.exp(tirx.const(0.0, "float32") - x))
    raise ValueError(f"no activation {activation!r}")
