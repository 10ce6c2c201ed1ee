"""Attention of float32 heads on a CPU, one query at a time, and rows written into a KV cache in place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .kernels.build import Body, prim_func
from .kernels.kernel import Cpu
from .kernels.math import exp, tanh
from .kernels.sweep import sweep

_KEYS = 16
"""Keys whose scores are computed before they are weighed."""

_LOWEST = -3.0e38
"""Less than every score but minus infinity, which so weighs nothing."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is fixed of an attention.

    ``heads``: of the query; ``groups``: how many share a head of keys. ``seen``: ``"all"`` keys, those up to
    the query's own place (``"causal"``: the last query sees all), or ``"cached"``: up to its place behind the
    row's length. ``bias``: which of its four sizes are 1, None without one.
    """

    heads: int
    groups: int
    size: int
    value_size: int
    seen: str
    scale: float
    softcap: float = 0.0
    window: int = 0
    bias: tuple[bool, ...] | None = None


def attention(shape: Shape, cpu: Cpu) -> Any:
    """query[batch, heads, tokens, size], key, value (, lengths) (, bias) → [.., tokens, value size]."""

    def body(b: Body) -> None:
        batch, tokens, keys = b.variable("batch"), b.variable("tokens"), b.variable("keys")
        kv = shape.heads // shape.groups
        query = b.buffer("query", (batch, shape.heads, tokens, shape.size))
        key = b.buffer("key", (batch, kv, keys, shape.size))
        value = b.buffer("value", (batch, kv, keys, shape.value_size))
        lengths = b.buffer("lengths", (batch,), "int64") if shape.seen == "cached" else None
        bias = None
        if shape.bias is not None:
            total = b.variable("total") if not shape.bias[3] else 1
            full = (batch, shape.heads, tokens, total)
            bias = b.buffer("bias", [1 if one else n for one, n in zip(shape.bias, full, strict=True)])
        out = b.buffer("out", (batch, shape.heads, tokens, shape.value_size))
        with b.parallel(batch * shape.heads) as row, b.serial(tokens) as t:
            n, h = row // shape.heads, row % shape.heads
            if lengths is not None:
                last = b.ir.min(lengths[n] + t + 1, keys)
            else:
                last = keys if shape.seen == "all" else keys - tokens + t + 1
            first: Any = 0
            if shape.window:
                first = b.ir.max(last - shape.window, 0)
            query_at = _Query(b, shape, cpu, query, key, value, bias, out, n, h, t)
            query_at.attend(first, last)

    flags = "_".join(str(f).lower() for f in (shape.seen, shape.size, shape.groups))
    return prim_func(f"attention_{flags}", body)


@dataclass(frozen=True, slots=True)
class _Query:
    """One query: token ``t`` of head ``h`` of row ``n``."""

    b: Body
    shape: Shape
    cpu: Cpu
    query: Any
    key: Any
    value: Any
    bias: Any
    out: Any
    n: Any
    h: Any
    t: Any

    def attend(self, first: Any, last: Any) -> None:
        """Write its output from the keys ``first`` to before ``last``."""
        b, width = self.b, self.shape.value_size
        mixed, scores, sums = b.local(width), b.local(_KEYS), b.local(2)
        sweep(b, width, self.cpu.lanes, lambda at, lanes: self._fill(mixed, at, lanes))
        b.store(sums, b.ir.float32(_LOWEST), 0)
        b.store(sums, b.ir.float32(0), 1)
        with b.serial((last - first + _KEYS - 1) // _KEYS) as chunk:
            begin = first + chunk * _KEYS
            with b.serial(_KEYS) as j:
                self._score(scores, begin + j, j, last)
            self._weigh(scores, sums, mixed, begin, last)

        def finish(at: Any, lanes: int) -> None:
            with b.vector(lanes) as v:
                total = mixed[at + v] / b.ir.max(sums[1], b.ir.float32(1e-38))
                b.store(self.out, total, self.n, self.h, self.t, at + v)

        sweep(b, width, self.cpu.lanes, finish)

    def _fill(self, buffer: Any, at: Any, lanes: int) -> None:
        with self.b.vector(lanes) as v:
            self.b.store(buffer, self.b.ir.float32(0), at + v)

    def _score(self, scores: Any, place: Any, j: Any, last: Any) -> None:
        b, lanes, size = self.b, self.cpu.lanes, self.shape.size
        head, inside = self.h // self.shape.groups, b.ir.min(place, last - 1)
        parts = b.local(1, lanes)
        b.fill(parts, 0.0)

        def multiply(at: Any, count: int) -> None:
            with b.vector(count) as v:
                product = self.query[self.n, self.h, self.t, at + v] * self.key[self.n, head, inside, at + v]
                b.store(parts, parts[0, v] + product, 0, v)

        sweep(b, size, lanes, multiply)
        width = lanes
        while width > 1:
            width //= 2
            with b.vector(width) as v:
                b.store(parts, parts[0, v] + parts[0, v + width], 0, v)
        total = parts[0, 0] * b.ir.float32(self.shape.scale)
        if self.shape.softcap:
            cap = b.ir.float32(self.shape.softcap)
            total = cap * tanh(total / cap)
        if self.bias is not None and self.shape.bias is not None:
            at = (self.n, self.h, self.t, inside)
            total = (
                total + self.bias[tuple(0 if one else i for one, i in zip(self.shape.bias, at, strict=True))]
            )
        b.store(scores, b.ir.if_then_else(place < last, total, b.ir.float32(-math.inf)), j)

    def _weigh(self, scores: Any, sums: Any, mixed: Any, begin: Any, last: Any) -> None:
        b, lanes = self.b, self.cpu.lanes
        head = self.h // self.shape.groups
        top, change = b.local(1), b.local(1)
        b.store(top, sums[0], 0)
        with b.serial(_KEYS) as j:
            b.store(top, b.ir.max(top[0], scores[j]), 0)
        b.store(change, exp(sums[0] - top[0]), 0)
        b.store(sums, top[0], 0)
        with b.vector(_KEYS) as v:
            b.store(scores, exp(scores[v] - top[0]), v)
        b.store(sums, sums[1] * change[0], 1)
        with b.serial(_KEYS) as j:
            b.store(sums, sums[1] + scores[j], 1)

        def mix(at: Any, count: int) -> None:
            with b.vector(count) as v:
                b.store(mixed, mixed[at + v] * change[0], at + v)
            with b.serial(_KEYS) as j, b.vector(count) as v:
                value = self.value[self.n, head, b.ir.min(begin + j, last - 1), at + v]
                b.store(mixed, mixed[at + v] + scores[j] * value, at + v)

        sweep(b, self.shape.value_size, lanes, mix)


def write_cache(heads: int, size: int, dtype: str) -> Any:
    """new[batch, heads, tokens, size], lengths, cache[batch, heads, capacity, size], written in place."""

    def body(b: Body) -> None:
        batch, tokens, capacity = b.variable("batch"), b.variable("tokens"), b.variable("capacity")
        new = b.buffer("new", (batch, heads, tokens, size), dtype)
        lengths = b.buffer("lengths", (batch,), "int64")
        cache = b.buffer("cache", (batch, heads, capacity, size), dtype)
        with b.serial(batch) as n, b.serial(heads) as h, b.serial(tokens) as t:
            place = lengths[n] + t
            with b.ir.If(b.ir.And(place >= 0, place < capacity)), b.ir.Then(), b.serial(size) as d:
                b.store(cache, new[n, h, t, d], n, h, place, d)

    return prim_func(f"write_cache_{heads}x{size}", body)
