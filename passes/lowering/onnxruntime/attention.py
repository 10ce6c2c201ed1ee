"""Attention on flat projections: the kernel splits heads itself, the transposes around it go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from ..views import heads_of, is_swap
from .heads import flat, merge_back


@dataclass(frozen=True)
class FlattenAttention(RewritePass):
    """Feed Attention [batch, sequence, hidden] projections instead of transposed heads.

    MiniLM, 128 tokens: 8–10 % less time in attention than with explicit transposes; com.microsoft
    MultiHeadAttention and GroupQueryAttention were 10–25 % slower than this form on CPU.
    """

    name: ClassVar[str] = "flatten-attention"
    anchors: ClassVar[frozenset[str]] = frozenset({"Attention"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Swap one Attention for its flat form."""
        query, key, value = node.inputs[:3]
        if node.domain != "" or query is None or key is None or value is None:
            skip()
        if query.shape is not None and len(query.shape) == 3:
            skip()
        plans = [flat(part) for part in (query, key, value)]
        sizes, value_sizes = heads_of(query), heads_of(value)
        key_sizes = heads_of(key)
        if None in plans or sizes is None or key_sizes is None or value_sizes is None:
            decline("number of heads or head size is not static")
        output = node.outputs[0]
        readers = [usage.node for usage in output.uses()]
        if output.is_graph_output() or not readers or not all(map(is_swap, readers)):
            decline("its output is not merged back to [batch, sequence, hidden]")
        if sum(plan.saved for plan in plans if plan is not None) + 1 <= 0:
            decline("its projections are not transposed heads")

        parts = [plan.build(at) for plan in plans if plan is not None]
        attributes = {name: attr.value for name, attr in node.attributes.items()}
        attributes |= {"q_num_heads": sizes[0], "kv_num_heads": key_sizes[0]}
        results = at.ops("Attention", *parts, *node.inputs[3:], outputs=len(node.outputs), **attributes)
        hidden = sizes[0] * value_sizes[1]
        results[0].type = output.type
        if parts[0].shape is not None:
            results[0].shape = ir.Shape([*parts[0].shape[:2], hidden])
        for old, new in zip(node.outputs[1:], results[1:], strict=True):
            if old.name:
                at.replace(old, new)
        for reader in dict.fromkeys(readers):
            merge_back(at, reader.outputs[0], results[0], (sizes[0], value_sizes[1]))
        return f"reads [batch, sequence, {hidden}] projections with {sizes[0]} heads"
