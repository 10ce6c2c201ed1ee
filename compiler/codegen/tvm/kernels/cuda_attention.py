"""Attention in tensor cores in one pass over keys and values: scores never leave the registers.

Source: FlashAttention-2, arXiv 2307.08691. A block takes 64 queries of a head, each of its four warps 16;
keys and values come in tiles of 64, the next ones while one is worked on. A softmax that is not finished
keeps the greatest score so far and is scaled whenever a greater one comes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

from .cuda_parts import DTYPES, MMA, WARP, Device, Tile, device_func
from .kernel import Kernel

Mask: TypeAlias = Literal["", "add", "keep"]
"""None, one that is added to scores, or a bool one that says which to keep."""

QUERIES = KEYS = 64
_WARPS = QUERIES // MMA
_STAGES = 2

_MOST = 128
"""Greatest size of a head: queries and results of it fit in registers."""


@dataclass(frozen=True, slots=True)
class Heads:
    """``count`` query heads share ``kv_count`` heads of keys (``size``) and values (``value_size``).

    ``first``: tensors are [batch, heads, sequence, size], else [batch, sequence, heads, size].
    """

    count: int
    kv_count: int
    size: int
    value_size: int
    first: bool = True

    def shape(self, batch: Any, sequence: Any, *, kv: bool, values: bool = False) -> tuple[Any, ...]:
        """Of a tensor."""
        return self.place(
            batch, self.kv_count if kv else self.count, sequence, self.value_size if values else self.size
        )

    def place(self, batch: Any, head: Any, row: Any, column: Any) -> tuple[Any, ...]:
        """In the tensors' order."""
        return (batch, head, row, column) if self.first else (batch, row, head, column)


def declines(heads: Heads, dtype: str, sequence: int | None) -> str | None:
    """Why the kernel does not fit."""
    if dtype not in DTYPES:
        return f"{dtype} has no tensor-core kernel of ours, {' and '.join(DTYPES)} have"
    for size in (heads.size, heads.value_size):
        if size % MMA or not 0 < size <= _MOST:
            return f"heads of {size} numbers are no multiple of {MMA} up to {_MOST}"
    if heads.count % heads.kv_count:
        return f"{heads.count} query heads do not share {heads.kv_count} evenly"
    if sequence is not None and sequence < MMA:
        return f"{sequence} queries leave most of a tile of {MMA} empty"
    return None


def attention(
    heads: Heads,
    dtype: str,
    *,
    scale: float | None = None,
    causal: bool = False,
    mask: Mask = "",
    mask_heads: int = 1,
    one_row: bool = False,
    batch: int | None = None,
    sequence: int | None = None,
    total: int | None = None,
) -> Kernel:
    """q[batch, H, S, D], k[batch, G, T, D], v[batch, G, T, E] (, mask) → y[batch, H, S, E].

    All of ``dtype``; scores and sums are float32. ``mask``: [batch | 1, 1 | H, S, T], bool for "keep".
    ``scale``: by default 1 / sqrt(D). ``causal``: the last query sees all keys, the one before all but one.
    ``mask_heads``: the mask's second dimension; its first is ``batch`` or, as a variable of its own, 1.
    ``one_row``: its third is 1, the same for all queries.
    ``batch``, ``sequence`` (S) and ``total`` (T): None is any number. A query that sees no key gives zeros.
    """
    masked = f"_{mask}{mask_heads}{'_row' * one_row}" * bool(mask)
    marks = "_causal" * causal + masked + "_rows" * (not heads.first)
    name = f"flash_{DTYPES[dtype]}_{heads.count}x{heads.kv_count}x{heads.size}x{heads.value_size}{marks}"
    factor = (1 / math.sqrt(heads.size) if scale is None else scale) * math.log2(math.e)
    write = partial(_Writer, heads, factor, causal, mask, (mask_heads, one_row), (batch, sequence, total))
    return Kernel(name, device_func(name, dtype, lambda b: write(b).write()))


class _Writer:
    """Writes the kernel; its fields are the buffers and indices that the parts share."""

    def __init__(
        self,
        heads: Heads,
        factor: float,
        causal: bool,
        mask: Mask,
        masked: tuple[int, bool],
        sizes: tuple[int | None, int | None, int | None],
        b: Device,
    ) -> None:
        self.heads, self.factor, self.causal, self.mask = heads, factor, causal, mask
        (self.mask_heads, self.one_row), self.b = masked, b
        names = ("batch", "sequence", "total")
        many, self.queries, self.keys = (
            b.variable(n) if s is None else s for n, s in zip(names, sizes, strict=True)
        )
        self.many = many
        self.q = b.buffer("q", heads.shape(many, self.queries, kv=False), b.dtype)
        self.k = b.buffer("k", heads.shape(many, self.keys, kv=True), b.dtype)
        self.v = b.buffer("v", heads.shape(many, self.keys, kv=True, values=True), b.dtype)
        if mask:
            self.mask_batch = b.variable("mask_batch")
            shape = (self.mask_batch, self.mask_heads, 1 if self.one_row else self.queries, self.keys)
            self.given = b.buffer("mask", shape, "bool" if mask == "keep" else b.dtype)
        self.y = b.buffer("y", heads.shape(many, self.queries, kv=False, values=True), b.dtype)

    def write(self) -> None:
        b, heads = self.b, self.heads
        with (
            b.ir.launch_thread("blockIdx.z", self.many) as self.each,
            b.ir.launch_thread("blockIdx.y", heads.count) as self.head,
            b.ir.launch_thread("blockIdx.x", (self.queries + QUERIES - 1) // QUERIES) as block,
            b.ir.launch_thread("threadIdx.x", _WARPS * WARP) as self.thread,
        ):
            self.top = block * QUERIES
            self.lane, self.warp = self.thread % WARP, self.thread // WARP
            self.tile_q, self.tile_k, self.tile_v = b.tiles(
                (QUERIES, heads.size), (_STAGES, KEYS, heads.size), (_STAGES, KEYS, heads.value_size)
            )
            self.part_q = b.registers(heads.size // MMA * 8, dtype=b.dtype)
            self.scores, self.out = b.registers(KEYS // 8 * 4), b.registers(heads.value_size // 8 * 4)
            self.part, self.weights = b.registers(8, dtype=b.dtype), b.registers(KEYS // 8 * 4, dtype=b.dtype)
            self.most, self.total = b.registers(2), b.registers(2)
            self.now, self.grown = b.registers(1), b.registers(1)
            self._work()

    def _work(self) -> None:
        b, heads = self.b, self.heads
        tiles = self._tiles()
        self._fetch(self.tile_q, (), self.q, self.top, self.queries, heads.size, self.head)
        self._fetch_keys(0)
        b.end_copies()
        self._fetch_values(0)
        b.end_copies()
        for i in range(heads.value_size // 8 * 4):
            b.store(self.out, b.ir.float32(0), i)
        for i in range(2):
            b.store(self.most, b.ir.float32(-math.inf), i)
            b.store(self.total, b.ir.float32(0), i)
        b.wait_for_copies(1)
        b.barrier()
        for k in range(0, heads.size, MMA):
            b.load_left(self.tile_q, (self.warp * MMA, k), self.lane, self.part_q, k // MMA * 8, turn=False)
        with b.serial(tiles) as tile:
            b.wait_for_copies(1)
            b.barrier()
            with b.ir.If(tile + 1 < tiles), b.ir.Then():
                self._fetch_keys(tile + 1)
            b.end_copies()
            self._score(tile)
            self._hide(tile)
            self._weigh()
            b.wait_for_copies(1)
            b.barrier()
            with b.ir.If(tile + 1 < tiles), b.ir.Then():
                self._fetch_values(tile + 1)
            b.end_copies()
            self._add_values(tile)
        self._finish()

    def _tiles(self) -> Any:
        """Tiles of keys that some query of the block sees."""
        keys = self.keys
        if self.causal:
            keys = self.b.ir.max(self.b.ir.min(keys, self.top + QUERIES + keys - self.queries), 0)
        return (keys + KEYS - 1) // KEYS

    def _fetch_keys(self, tile: Any) -> None:
        kv_head = self.head // (self.heads.count // self.heads.kv_count)
        place = (tile % _STAGES,)
        self._fetch(self.tile_k, place, self.k, tile * KEYS, self.keys, self.heads.size, kv_head)

    def _fetch_values(self, tile: Any) -> None:
        kv_head = self.head // (self.heads.count // self.heads.kv_count)
        place = (tile % _STAGES,)
        self._fetch(self.tile_v, place, self.v, tile * KEYS, self.keys, self.heads.value_size, kv_head)

    def _fetch(
        self, tile: Tile, place: Sequence[Any], source: Any, first: Any, count: Any, size: int, head: Any
    ) -> None:
        def of(row: Any, column: Any) -> tuple[Any, Sequence[Any], Any]:
            return source, self.heads.place(self.each, head, first + row, column), first + row < count

        self.b.fetch(tile, place, (KEYS, size), (self.thread, _WARPS * WARP), of)

    def _score(self, tile: Any) -> None:
        """Products of queries and keys."""
        for i in range(KEYS // 8 * 4):
            self.b.store(self.scores, self.b.ir.float32(0), i)
        for pair in range(KEYS // MMA):
            for k in range(self.heads.size // MMA):
                place = (tile % _STAGES, pair * MMA, k * MMA)
                self.b.load_right(self.tile_k, place, self.lane, self.part, 0, turn=False)
                for half in range(2):
                    at = (pair * 2 + half) * 4
                    self.b.product(self.part_q, k * 8, self.part, half * 4, self.scores, at)

    def _row(self, lower: int) -> Any:
        return self.top + self.warp * MMA + lower * 8 + self.lane // 4

    def _each_score(self) -> list[tuple[int, int, Any]]:
        """Place in ``scores``, which of the thread's two rows, key within the tile."""
        return [
            ((n * 4 + lower * 2 + e), lower, n * 8 + self.lane % 4 * 2 + e)
            for n in range(KEYS // 8)
            for lower in range(2)
            for e in range(2)
        ]

    def _hide(self, tile: Any) -> None:
        """Scales scores to powers of two; -inf for keys that a query does not see or that are not there."""
        from tvm import tirx

        b, least = self.b, self.b.ir.float32(-math.inf)
        for at, lower, column in self._each_score():
            value = self.scores[at] * b.ir.float32(self.factor)
            if self.mask:
                row, key = self._row(lower), tile * KEYS + column
                there = tirx.all(row < self.queries, key < self.keys)
                index = (
                    tirx.Select(self.mask_batch > 1, self.each.astype("int64"), b.ir.int64(0)),
                    self.head if self.mask_heads > 1 else 0,
                    0 if self.one_row else row,
                    key,
                )
                if self.mask == "keep":
                    kept = tirx.if_then_else(there, self.given[index], tirx.const(False, "bool"))
                    value = tirx.Select(kept, value, least)
                else:
                    moved = tirx.if_then_else(there, self.given[index].astype("float32"), b.ir.float32(0))
                    value = value + moved * b.ir.float32(math.log2(math.e))
            b.store(self.scores, value, at)
        last = tile * KEYS + KEYS - 1
        some = last >= self.keys
        if self.causal:
            some = tirx.any(some, last > self.top + self.keys - self.queries)
        with b.ir.If(some), b.ir.Then():
            for at, lower, column in self._each_score():
                key = tile * KEYS + column
                seen = key < self.keys
                if self.causal:
                    seen = tirx.all(seen, key <= self._row(lower) + self.keys - self.queries)
                b.store(self.scores, tirx.Select(seen, self.scores[at], least), at)

    def _weigh(self) -> None:
        """Scores become weights, in ``weights`` as a left factor; sums so far are scaled to the greatest."""
        from tvm import tirx

        b = self.b
        for lower in range(2):
            mine = [at for at, row, _ in self._each_score() if row == lower]
            b.store(self.now, self.most[lower], 0)
            for at in mine:
                b.store(self.now, b.ir.max(self.now[0], self.scores[at]), 0)
            b.over_row(self.now, b.ir.max)
            # A row that has seen nothing yet has no greatest score to subtract.
            nothing = self.now[0] == b.ir.float32(-math.inf)
            safe = tirx.Select(nothing, b.ir.float32(0), self.now[0])
            b.store(self.grown, tirx.exp2(self.most[lower] - safe), 0)
            b.store(self.most, self.now[0], lower)
            b.store(self.now, safe, 0)
            b.store(self.total, self.total[lower] * self.grown[0], lower)
            for at in mine:
                b.store(self.scores, tirx.exp2(self.scores[at] - self.now[0]), at)
                b.store(self.total, self.total[lower] + self.scores[at], lower)
            for n in range(self.heads.value_size // 8):
                for e in range(2):
                    at = n * 4 + lower * 2 + e
                    b.store(self.out, self.out[at] * self.grown[0], at)
        for at in range(KEYS // 8 * 4):
            b.store(self.weights, self.scores[at].astype(b.dtype), at)

    def _add_values(self, tile: Any) -> None:
        for pair in range(self.heads.value_size // MMA):
            for k in range(KEYS // MMA):
                place = (tile % _STAGES, k * MMA, pair * MMA)
                self.b.load_right(self.tile_v, place, self.lane, self.part, 0, turn=True)
                for half in range(2):
                    at = (pair * 2 + half) * 4
                    self.b.product(self.weights, k * 8, self.part, half * 4, self.out, at)

    def _finish(self) -> None:
        from tvm import tirx

        b, add = self.b, _add
        for lower in range(2):
            b.store(self.now, self.total[lower], 0)
            b.over_row(self.now, add)
            empty = self.now[0] == b.ir.float32(0)
            b.store(self.grown, tirx.Select(empty, b.ir.float32(0), b.ir.float32(1) / self.now[0]), 0)
            row = self._row(lower)
            with b.ir.If(row < self.queries), b.ir.Then():
                for n in range(self.heads.value_size // 8):
                    column = n * 8 + self.lane % 4 * 2
                    with b.vector(2) as v:
                        value = (self.out[n * 4 + lower * 2 + v] * self.grown[0]).astype(b.dtype)
                        b.store(self.y, value, *self.heads.place(self.each, self.head, row, column + v))


def _add(a: Any, b: Any) -> Any:
    return a + b
