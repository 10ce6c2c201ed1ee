"""Grouped-query attention: key and value heads that were repeated for Attention, which shares them itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import dim_of
from ..base import PassContext, decline, skip
from .match import RaisingPass, Region, made_by, rank, size


@dataclass(frozen=True)
class ShareKvHeads(RaisingPass):
    """Let Attention read key and value heads before their repetition (grouped-query attention)."""

    name: ClassVar[str] = "share-kv-heads"
    opset: ClassVar[int] = 23
    anchors: ClassVar[frozenset[str]] = frozenset({"Attention"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Undo the repetition of both, if it is the same."""
        q, k, v = node.inputs[:3]
        if node.domain != "" or k is None or v is None or rank(k) != 4 or any(node.inputs[4:]):
            skip()
        k_found, v_found = _few(k), _few(v)
        if k_found is None or v_found is None:
            skip()
        heads, groups = size(q, 1), k_found.heads
        if heads is None or groups != v_found.heads or heads % groups:
            decline(f"{heads} query heads do not share {groups} key and {v_found.heads} value heads")
        if heads != size(k, 1) or heads != size(v, 1):
            decline("keys or values have not as many heads as queries")
        if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            decline("present keys or values are read")
        attributes = {name: a.value for name, a in node.attributes.items()}
        few = k_found.build(at), v_found.build(at)
        new = at.ops("Attention", q, *few, *node.inputs[3:], outputs=1, **attributes)[0]
        at.replace(node.outputs[0], new)
        return f"{heads} query heads share {groups} key and value heads"


@dataclass(frozen=True, slots=True)
class _Few:
    """Keys or values before their heads were repeated.

    ``source``: [b, heads, s, d] if ``transposed``, else [b, s, heads, 1, d], which is still to be transposed,
    and rotated if ``rotary`` is a node.
    """

    source: ir.Value
    heads: int
    transposed: bool = True
    rotary: ir.Node | None = None

    def build(self, at: Rewriter) -> ir.Value:
        """[b, heads, s, d]."""
        if self.transposed:
            return self.source
        dims = list(self.source.shape or ())
        flat = at.op("Squeeze", self.source, at.const(np.array([3], np.int64), "groups_axis"))
        flat.type, flat.shape = self.source.type, ir.Shape([*dims[:3], dims[4]])
        turned = at.op("Transpose", flat, perm=[0, 2, 1, 3])
        turned.type, turned.shape = flat.type, ir.Shape([dims[0], dims[2], dims[1], dims[4]])
        if self.rotary is None:
            return turned
        attributes = {name: a.value for name, a in self.rotary.attributes.items()} | {"num_heads": self.heads}
        rotated = at.op("RotaryEmbedding", turned, *self.rotary.inputs[1:], **attributes)
        rotated.type, rotated.shape = turned.type, turned.shape
        return rotated


def _few(value: ir.Value) -> _Few | None:
    source = _unrepeated(value)
    heads = size(source, 1)
    if source is not None and heads is not None:
        return _Few(source, heads)
    rotary = made_by(value, "RotaryEmbedding")
    transpose = made_by(value if rotary is None else rotary.inputs[0], "Transpose")
    if transpose is None or list(transpose.attributes.get_ints("perm", ())) != [0, 2, 1, 3]:
        return None
    reshape = made_by(transpose.inputs[0], "Reshape")
    expand = made_by(reshape.inputs[0], "Expand", "Tile") if reshape is not None else None
    single = expand.inputs[0] if expand is not None else None
    if reshape is None or expand is None or single is None or rank(single) != 5:
        return None
    before, wide, flat = (
        [dim_of(d) for d in v.shape or ()] for v in (single, expand.outputs[0], reshape.outputs[0])
    )
    count, repeats = before[2], wide[3] if len(wide) == 5 else None
    if not isinstance(count, int) or not isinstance(repeats, int) or None in before:
        return None
    repeated = [*before[:3], repeats, before[4]], [*before[:2], count * repeats, before[4]]
    return _Few(single, count, False, rotary) if before[3] == 1 and (wide, flat) == repeated else None


def _unrepeated(value: ir.Value) -> ir.Value | None:
    """``x``: [b, h, s, d] where ``value`` is x with each head repeated in place, as [b, h·n, s, d]."""
    region = Region()
    reshape = region.find(value, "Reshape")
    wide = reshape.inputs[0] if reshape is not None else None
    expand = region.find(wide, "Expand", "Tile")
    unsqueeze = region.find(expand.inputs[0], "Unsqueeze", "Reshape") if expand is not None else None
    source = unsqueeze.inputs[0] if unsqueeze is not None else None
    single = expand.inputs[0] if expand is not None else None
    if source is None or single is None or wide is None or rank(source) != 4 or rank(wide) != 5:
        return None
    batch, heads, length, width = (dim_of(d) for d in source.shape or ())
    repeats = size(wide, 2)
    before = [batch, heads, 1, length, width]
    after = [batch, heads, repeats, length, width]
    if None in after or not isinstance(heads, int) or not isinstance(repeats, int):
        return None
    flat = [batch, heads * repeats, length, width]
    shapes = [[dim_of(d) for d in v.shape or ()] for v in (single, wide, value)]
    return source if shapes == [before, after, flat] else None
