"""Partial rotary: only the first elements of each head are rotated, the rest is joined again unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .last_axis import part_of
from .match import RaisingPass, Region, size


@dataclass(frozen=True)
class RaisePartialRotary(RaisingPass):
    """Let RotaryEmbedding pass the rest of each head through (rotary_embedding_dim)."""

    name: ClassVar[str] = "raise-partial-rotary"
    opset: ClassVar[int] = 23
    anchors: ClassVar[frozenset[str]] = frozenset({"Concat"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match Concat(RotaryEmbedding(x[:r]), x[r:]) on the last axis."""
        region = Region(node)
        rotary = region.find(node.inputs[0], "RotaryEmbedding") if len(node.inputs) == 2 else None
        first = part_of(rotary.inputs[0], region) if rotary is not None else None
        rest = part_of(node.inputs[1], region) if first is not None else None
        if rotary is None or first is None or rest is None or first.source is not rest.source:
            skip()
        width = size(first.source, -1)
        if (first.start, first.step, rest.start, rest.stop, rest.step) != (0, 1, first.stop, width, 1):
            decline("the parts are not the first elements and the rest")
        if node.attributes.get_int("axis", 0) not in (-1, 3) or "rotary_embedding_dim" in rotary.attributes:
            decline("not joined along the last axis of whole rotated heads")
        region.close(node.outputs[0])
        attributes = {name: a.value for name, a in rotary.attributes.items()}
        attributes["rotary_embedding_dim"] = first.stop
        at.replace(node.outputs[0], at.op("RotaryEmbedding", first.source, *rotary.inputs[1:], **attributes))
        return f"the first {first.stop} of {width} elements are rotated"
