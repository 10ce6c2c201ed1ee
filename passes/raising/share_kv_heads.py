"""Grouped-query attention: key and value heads that were repeated for Attention, which shares them itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import dim_of
from ..base import PassContext, decline, skip
from .match import RaisingPass, Region, rank, size


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
        k_source, v_source = _unrepeated(k), _unrepeated(v)
        if k_source is None or v_source is None:
            skip()
        heads, groups = size(q, 1), size(k_source, 1)
        if heads is None or groups is None or groups != size(v_source, 1) or heads % groups:
            decline(f"{heads} query heads do not share {groups} key and {size(v_source, 1)} value heads")
        if heads != size(k, 1) or heads != size(v, 1):
            decline("keys or values have not as many heads as queries")
        if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            decline("present keys or values are read")
        attributes = {name: a.value for name, a in node.attributes.items()}
        new = at.ops("Attention", q, k_source, v_source, *node.inputs[3:], outputs=1, **attributes)[0]
        at.replace(node.outputs[0], new)
        return f"{heads} query heads share {groups} key and value heads"


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
