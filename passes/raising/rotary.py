"""RotaryEmbedding from x·cos + rotated(x)·sin, with halves (Llama) or pairs (Cohere, GPT-J) rotated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .last_axis import Part, part_of
from .match import RaisingPass, Region, made_by, operands, rank, require_rank, size
from .rotary_cache import halve


@dataclass(frozen=True)
class RaiseRotary(RaisingPass):
    """Raise x·cos + rotated(x)·sin to RotaryEmbedding, with the half of cos and sin that is not repeated.

    cos and sin become [batch or 1, sequence, size / 2], as torch's exporter leaves them; a batch of 1
    stands for every batch.
    """

    name: ClassVar[str] = "raise-rotary"
    opset: ClassVar[int] = 23
    anchors: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match the two products, then derive the caches."""
        for straight, turned in operands(node):
            region = Region(node)
            found = _match(straight, turned, region)
            if found is None:
                continue
            x, cos, sin, interleaved = found
            width = size(x, -1)
            if rank(x) != 4 or width is None or width % 2:
                decline("x is not known to be [batch, heads, sequence, even static size]")
            caches = [_without_heads(c) for c in (cos, sin)]
            if None in caches:
                decline("cos and sin are not [batch or 1, 1, sequence, size]: heads are not on axis 1")
            if any(halve(c, interleaved, None) is None for c in caches if c is not None):
                decline(f"cos and sin are not repeated {'pairwise' if interleaved else 'in two halves'}")
            region.close(node.outputs[0])
            require_rank(x, node.outputs[0])
            halves = [_batched(halve(c, interleaved, at), at) for c in caches if c is not None]
            heads = size(x, 1)
            new = at.op("RotaryEmbedding", x, *halves, interleaved=int(interleaved), num_heads=heads)
            at.replace(node.outputs[0], new)
            return f"RotaryEmbedding of {x.name}, {'pairs' if interleaved else 'halves'}"
        return skip()


def _match(
    straight: ir.Value, turned: ir.Value, region: Region
) -> tuple[ir.Value, ir.Value, ir.Value, bool] | None:
    a, b = region.find(straight, "Mul"), region.find(turned, "Mul")
    if a is None or b is None:
        return None
    for rotated, sin in operands(b):
        trial = region.copy()
        found = _rotated(rotated, trial)
        if found is None:
            continue
        x, interleaved = found
        for same, cos in operands(a):
            if same is x:
                region.nodes = trial.nodes
                return x, cos, sin, interleaved
    return None


def _rotated(value: ir.Value, region: Region) -> tuple[ir.Value, bool] | None:
    """``(x, interleaved)`` where ``value`` is x with its halves or pairs turned by a quarter."""
    node = region.find(value, "Concat", "Reshape")
    if node is None:
        return None
    interleaved = node.op_type == "Reshape"
    concat = region.find(node.inputs[0], "Concat") if interleaved else node
    count = rank(concat.outputs[0]) if concat is not None else None
    if concat is None or count is None or len(concat.inputs) != 2:
        return None
    if concat.attributes.get_int("axis", 0) not in (-1, count - 1):
        return None
    first, second = (_unstacked(v, region) if interleaved else v for v in concat.inputs)
    negative = region.find(first, "Neg")
    high = part_of(negative.inputs[0], region) if negative is not None else None
    low = part_of(second, region)
    if high is None or low is None or high.source is not low.source:
        return None
    width = size(low.source, -1)
    if width is None or (interleaved and size(value, -1) != width):
        return None
    expected = (
        (Part(low.source, 0, width, 2), Part(low.source, 1, width, 2))
        if interleaved
        else (Part(low.source, 0, width // 2, 1), Part(low.source, width // 2, width, 1))
    )
    return (low.source, interleaved) if (low, high) == expected else None


def _unstacked(value: ir.Value | None, region: Region) -> ir.Value | None:
    """What was given a last axis of size 1, to be stacked along it."""
    node = region.find(value, "Unsqueeze", "Reshape")
    source = node.inputs[0] if node is not None else None
    if value is None or source is None or value.shape is None or source.shape is None:
        return None
    return source if list(value.shape) == [*source.shape, 1] else None


def _without_heads(cache: ir.Value) -> ir.Value | None:
    """``cache`` without its axis of heads: [batch or 1, sequence, size] or [sequence, size]."""
    count = rank(cache)
    if count == 2 or (count == 3 and size(cache, 0) == 1):
        return cache
    node = made_by(cache, "Unsqueeze")
    source = node.inputs[0] if node is not None else None
    if count != 4 or size(cache, 1) != 1:
        return None
    if source is None or rank(source) not in (2, 3):
        return cache
    if rank(source) == 2:
        return source if list(cache.shape or ()) == [1, 1, *(source.shape or ())] else cache
    kept = [d for axis, d in enumerate(cache.shape or ()) if axis != 1]
    return source if list(source.shape or ()) == kept else cache


def _batched(cache: ir.Value | None, at: Rewriter) -> ir.Value | None:
    if cache is None or rank(cache) == 3:
        return cache
    if rank(cache) == 4:
        return at.op("Squeeze", cache, at.const(np.array([1], np.int64), "heads_axis"))
    return at.op("Unsqueeze", cache, at.const(np.array([0], np.int64), "batch_axis"))
