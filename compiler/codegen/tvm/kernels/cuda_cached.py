"""Attention over a KV cache on a GPU, and new rows written into the cache.

A block takes one query of one head, each of its warps every fourth key: 32 threads share a key's numbers.
Every warp keeps its own softmax (arXiv 2307.08691); at the end the four are put together. Keys beyond what
a query sees are never read: they may hold anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from .cuda_attention import Heads
from .cuda_parts import DTYPES, WARP, Device, device_func
from .kernel import Kernel

_WARPS = 4

_LOWEST = -3.0e38
"""Below all scores but minus infinity, which so weighs nothing."""

SHORT = {**DTYPES, "float32": "fp32"}
"""What tensors may be made of, as kernels are named."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What becomes of a product of query and key: ``scale``, ``softcap`` (0: none), the last ``window`` keys.

    ``bias``: float32 of four dimensions is added; which of its sizes are 1, None without one.
    """

    scale: float
    softcap: float = 0.0
    window: int = 0
    bias: tuple[bool, ...] | None = None


def cached_attention(heads: Heads, dtype: str, scores: Scores) -> Kernel:
    """query[batch, H, S, D], key[batch, G, C, D], value[batch, G, C, E], lengths (, bias) → [batch, H, S, E].

    ``lengths``: int64[batch], how many keys each row held before; query ``i`` sees those and ``i + 1`` more.
    """
    marks = f"_window{scores.window}" * bool(scores.window) + "_bias" * (scores.bias is not None)
    name = f"cached_{SHORT[dtype]}_{heads.count}x{heads.kv_count}x{heads.size}x{heads.value_size}{marks}"
    return Kernel(name, device_func(name, dtype, lambda b: _Query(heads, scores, b).write()))


def cache_write(heads: int, size: int, dtype: str) -> Kernel:
    """new[batch, heads, tokens, size], lengths, cache[batch, heads, capacity, size], which is written to."""
    name = f"write_cache_{SHORT[dtype]}_{heads}x{size}"
    return Kernel(name, device_func(name, dtype, partial(_write_cache, heads, size)))


def _write_cache(heads: int, size: int, b: Device) -> None:
    batch, tokens, capacity = b.variable("batch"), b.variable("tokens"), b.variable("capacity")
    new = b.buffer("new", (batch, heads, tokens, size), b.dtype)
    lengths = b.buffer("lengths", (batch,), "int64")
    cache = b.buffer("cache", (batch, heads, capacity, size), b.dtype)
    with (
        b.ir.launch_thread("blockIdx.z", batch) as n,
        b.ir.launch_thread("blockIdx.y", heads) as h,
        b.ir.launch_thread("blockIdx.x", tokens) as t,
        b.ir.launch_thread("threadIdx.x", WARP) as lane,
    ):
        place = lengths[n] + t
        with b.ir.If(b.ir.And(place >= 0, place < capacity)), b.ir.Then(), b.serial(-(-size // WARP)) as i:
            d = i * WARP + lane
            with b.ir.If(d < size), b.ir.Then():
                b.store(cache, new[n, h, t, d], n, h, place, d)


class _Query:
    """Writes the kernel; its fields are the buffers and indices that the parts share."""

    def __init__(self, heads: Heads, scores: Scores, b: Device) -> None:
        self.heads, self.scores, self.b = heads, scores, b
        batch, tokens, keys = b.variable("batch"), b.variable("tokens"), b.variable("keys")
        self.batch, self.tokens, self.keys = batch, tokens, keys
        self.query = b.buffer("query", heads.shape(batch, tokens, kv=False), b.dtype)
        self.key = b.buffer("key", heads.shape(batch, keys, kv=True), b.dtype)
        self.value = b.buffer("value", heads.shape(batch, keys, kv=True, values=True), b.dtype)
        self.lengths = b.buffer("lengths", (batch,), "int64")
        if scores.bias is not None:
            total = 1 if scores.bias[3] else b.variable("total")
            full = (batch, heads.count, tokens, total)
            self.bias = b.buffer("bias", [1 if one else s for one, s in zip(scores.bias, full, strict=True)])
        self.out = b.buffer("out", heads.shape(batch, tokens, kv=False, values=True), b.dtype)

    def write(self) -> None:
        """The whole body."""
        b, heads = self.b, self.heads
        with (
            b.ir.launch_thread("blockIdx.z", self.batch) as self.n,
            b.ir.launch_thread("blockIdx.y", heads.count) as self.h,
            b.ir.launch_thread("blockIdx.x", self.tokens) as self.t,
            b.ir.launch_thread("threadIdx.x", _WARPS * WARP) as self.thread,
        ):
            self.lane, self.warp = self.thread % WARP, self.thread // WARP
            self.q, self.mixed = (
                b.registers(_parts(heads.size)),
                b.registers(_parts(heads.value_size)),
            )
            self.now, self.grown, self.most, self.total = (b.registers(1) for _ in range(4))
            b.shared_bytes = 4 * _WARPS * (heads.value_size + 2)
            self.shared = b.ir.alloc_buffer((b.shared_bytes // 4,), "float32", scope="shared.dyn")
            self._look()
            self._join()

    def _own(self, buffer: Any, row: Any, head: Any, size: int, part: int) -> Any:
        """This thread's number of a row, 0 beyond its end."""
        from tvm import tirx

        d = part * WARP + self.lane
        value = buffer[self.n, head, row, d].astype("float32")
        return (
            value if (part + 1) * WARP <= size else tirx.if_then_else(d < size, value, self.b.ir.float32(0))
        )

    def _look(self) -> None:
        """Every warp at its keys."""
        b, heads = self.b, self.heads
        for part in range(_parts(heads.size)):
            b.store(self.q, self._own(self.query, self.t, self.h, heads.size, part), part)
        for part in range(_parts(heads.value_size)):
            b.store(self.mixed, b.ir.float32(0), part)
        b.store(self.most, b.ir.float32(_LOWEST), 0)
        b.store(self.total, b.ir.float32(0), 0)
        last = b.ir.min(self.lengths[self.n] + self.t + 1, self.keys)
        first: Any = b.ir.int64(0)
        if self.scores.window:
            first = b.ir.max(last - self.scores.window, first)
        with b.serial((last - first + _WARPS - 1) // _WARPS) as step:
            key = first + step * _WARPS + self.warp
            with b.ir.If(key < last), b.ir.Then():
                self._score(key)
                self._add(key)

    def _score(self, key: Any) -> None:
        """Into ``now``, as a power of two."""
        from tvm import tirx

        b, heads, scores = self.b, self.heads, self.scores
        kv_head = self.h // (heads.count // heads.kv_count)
        total: Any = b.ir.float32(0)
        for part in range(_parts(heads.size)):
            total = total + self.q[part] * self._own(self.key, key, kv_head, heads.size, part)
        b.store(self.now, total, 0)
        b.over_row(self.now, _sum, WARP)
        score = self.now[0] * b.ir.float32(scores.scale)
        if scores.softcap:
            cap = b.ir.float32(scores.softcap)
            score = cap * tirx.tanh(score / cap)
        if scores.bias is not None:
            at = (self.n, self.h, self.t, key)
            score = score + self.bias[tuple(0 if one else i for one, i in zip(scores.bias, at, strict=True))]
        b.store(self.now, score * b.ir.float32(math.log2(math.e)), 0)

    def _add(self, key: Any) -> None:
        """The key's value, by its weight."""
        from tvm import tirx

        b, heads = self.b, self.heads
        kv_head = self.h // (heads.count // heads.kv_count)
        b.store(self.grown, self.most[0], 0)
        b.store(self.most, b.ir.max(self.most[0], self.now[0]), 0)
        b.store(self.grown, tirx.exp2(self.grown[0] - self.most[0]), 0)
        b.store(self.now, tirx.exp2(self.now[0] - self.most[0]), 0)
        b.store(self.total, self.total[0] * self.grown[0] + self.now[0], 0)
        for part in range(_parts(heads.value_size)):
            value = self._own(self.value, key, kv_head, heads.value_size, part)
            b.store(self.mixed, self.mixed[part] * self.grown[0] + self.now[0] * value, part)

    def _join(self) -> None:
        """What the warps found, each as if its greatest score were that of all."""
        from tvm import tirx

        b, size = self.b, self.heads.value_size
        tops = _WARPS * size
        with b.ir.If(self.lane == 0), b.ir.Then():
            b.store(self.shared, self.most[0], tops + self.warp)
            b.store(self.shared, self.total[0], tops + _WARPS + self.warp)
        for part in range(_parts(size)):
            d = part * WARP + self.lane
            with b.ir.If(d < size), b.ir.Then():
                b.store(self.shared, self.mixed[part], self.warp * size + d)
        b.barrier()
        b.store(self.most, self.shared[tops], 0)
        for warp in range(1, _WARPS):
            b.store(self.most, b.ir.max(self.most[0], self.shared[tops + warp]), 0)
        b.store(self.total, b.ir.float32(0), 0)
        for warp in range(_WARPS):
            share = tirx.exp2(self.shared[tops + warp] - self.most[0])
            b.store(self.total, self.total[0] + share * self.shared[tops + _WARPS + warp], 0)
        empty = self.total[0] == b.ir.float32(0)
        b.store(self.total, tirx.Select(empty, b.ir.float32(0), b.ir.float32(1) / self.total[0]), 0)
        for turn in range(-(-size // (_WARPS * WARP))):
            d = turn * _WARPS * WARP + self.thread
            with b.ir.If(d < size), b.ir.Then():
                b.store(self.now, b.ir.float32(0), 0)
                for warp in range(_WARPS):
                    share = tirx.exp2(self.shared[tops + warp] - self.most[0])
                    b.store(self.now, self.now[0] + share * self.shared[warp * size + d], 0)
                b.store(self.out, (self.now[0] * self.total[0]).astype(b.dtype), self.n, self.h, self.t, d)


def _parts(size: int) -> int:
    """How many of ``size`` numbers a thread holds at most."""
    return -(-size // WARP)


def _sum(a: Any, b: Any) -> Any:
    return a + b
