"""Cached attention in standard operators: what every provider runs, whatever the options."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.dialect import MIAOTUI
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from ..views import shape_constant

INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL


@dataclass(frozen=True)
class ExpandCachedAttention(RewritePass):
    """Write CachedAttention as ScatterElements into the cache, MatMul, Softmax and MatMul.

    Query heads that share a key head are folded into the rows of one product, so no head is repeated. On a
    GPU the whole capacity is multiplied and masked instead of the part in use: its size is known on the host
    without waiting for the device, and stays the same from step to step, as CUDA graphs want it.
    """

    name: ClassVar[str] = "expand-cached-attention"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset({"CachedAttention"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Expand one CachedAttention."""
        if node.domain != MIAOTUI:
            skip()
        query, key, value, past_key, past_value, lengths = node.inputs[:6]
        bias = node.inputs[6] if len(node.inputs) > 6 else None
        if None in (query, key, value, past_key, past_value, lengths):
            skip()
        assert query is not None and key is not None and value is not None and lengths is not None
        heads, kv_heads, width = _size(query, 1), _size(key, 1), _size(query, 3)
        value_width, dtype = _size(value, 3), query.dtype
        if dtype is None:
            decline("its dtype is not known")
        fixed = context.target.device != "cpu" and bias is None
        build = _Expansion(at, query, lengths, dtype, past_key if fixed else None)
        presents = [build.write_back(past, new) for past, new in ((past_key, key), (past_value, value))]
        keys, values = (build.used(p) for p in presents)

        scale = node.attributes.get_float("scale", 0.0) or 1 / math.sqrt(width)
        shared = heads != kv_heads
        scaled = build.op("Mul", query, build.number(scale))
        folded = build.reshape(scaled, [0, kv_heads, -1, width]) if shared else scaled
        scores = build.op("MatMul", folded, build.op("Transpose", keys, perm=[0, 1, 3, 2]))
        cap = node.attributes.get_float("softcap", 0.0)
        if cap:
            bounded = build.op("Tanh", build.op("Div", scores, build.number(cap)))
            scores = build.op("Mul", bounded, build.number(cap))
        if shared:
            split = build.join(shape_constant(at, [0, heads]), build.tokens, build.total)
            scores = build.op("Reshape", scores, split)
        mask = build.mask(node.attributes.get_int("window", 0))
        scores = build.op("Add", scores, mask if bias is None else build.op("Add", mask, bias))
        weights = build.op("Softmax", scores, axis=-1)
        if shared:
            merged = build.join(shape_constant(at, [0, kv_heads, -1]), build.total)
            weights = build.op("Reshape", weights, merged)
        result = build.op("MatMul", weights, values)
        if shared:
            result = build.reshape(result, [0, heads, -1, value_width])
        for old, new in zip(node.outputs, (result, *presents), strict=True):
            at.replace(old, new)
        return (
            f"{heads} query and {kv_heads} key heads in standard operators{', all of its capacity' * fixed}"
        )


class _Expansion:
    """What is built around one node; ``tokens`` and ``total``, keys that are looked at: int64[1].

    ``cache``: a past whose whole capacity is looked at; None for what is in use.
    """

    def __init__(
        self, at: Rewriter, query: ir.Value, lengths: ir.Value, dtype: ir.DataType, cache: ir.Value | None
    ) -> None:
        self.at, self.dtype, self.whole = at, dtype, cache is not None
        self.tokens = self.op("Shape", query, kind=INT64, start=2, end=3)
        if cache is not None:
            self.total = self.op("Shape", cache, kind=INT64, start=2, end=3)
        else:
            self.total = self.op("Add", self.op("ReduceMax", lengths, keepdims=1), self.tokens)
        rows = self.op("Unsqueeze", lengths, shape_constant(at, [1, 2, 3]))
        column = self.op("Unsqueeze", self.steps(self.tokens), shape_constant(at, [1]))
        self.positions = self.op("Add", rows, column)  # [batch, 1, tokens, 1]

    def op(
        self, op_type: str, *inputs: ir.Value | None, kind: ir.DataType | None = None, **attributes: Any
    ) -> ir.Value:
        """A new value of dtype ``kind``, by default that of the first input."""
        made = self.at.op(op_type, *inputs, **attributes)
        first = inputs[0]
        dtype = kind if kind is not None else None if first is None else first.dtype
        made.type = None if dtype is None else ir.TensorType(dtype)
        return made

    def number(self, value: float) -> ir.Value:
        """A scalar of the scores' dtype."""
        return self.at.const(np.asarray(value, self.dtype.numpy()), "number")

    def steps(self, length: ir.Value) -> ir.Value:
        """0, 1, ... below ``length``: int64[1]."""
        zero, one = (self.at.const(np.asarray(n, np.int64), f"step_{n}") for n in (0, 1))
        return self.op("Range", zero, self.op("Squeeze", length), one)

    def join(self, *parts: ir.Value) -> ir.Value:
        """Shapes as one."""
        return self.op("Concat", *parts, axis=0)

    def reshape(self, value: ir.Value, target: list[int]) -> ir.Value:
        """``value`` in a shape of sizes, 0 and -1."""
        return self.op("Reshape", value, shape_constant(self.at, target))

    def write_back(self, past: ir.Value | None, new: ir.Value) -> ir.Value:
        """``past`` with ``new`` at the positions."""
        assert past is not None
        places = self.op("Expand", self.positions, self.op("Shape", new, kind=INT64))
        return self.op("ScatterElements", past, places, new, axis=2)

    def used(self, present: ir.Value) -> ir.Value:
        """The part of the cache that is looked at."""
        if self.whole:
            return present
        return self.op(
            "Slice", present, shape_constant(self.at, [0]), self.total, shape_constant(self.at, [2])
        )

    def mask(self, window: int) -> ir.Value:
        """0 where a query sees a key, else minus infinity: [batch, 1, tokens, total]."""
        keys = self.steps(self.total)
        seen = self.op("LessOrEqual", keys, self.positions, kind=BOOL)
        if window:
            first = self.op("Sub", self.positions, self.at.const(np.asarray(window, np.int64), "window"))
            seen = self.op("And", seen, self.op("Greater", keys, first, kind=BOOL), kind=BOOL)
        return self.op("Where", seen, self.number(0.0), self.number(-np.inf), kind=self.dtype)


def _size(value: ir.Value, axis: int) -> int:
    size = value.shape[axis] if value.shape is not None and len(value.shape) == 4 else None
    if not isinstance(size, int):
        decline("number of heads or head size is not static")
    return size
