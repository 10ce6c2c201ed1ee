"""Attention masks that are causal or empty at every length: the kernel has them built in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import DimRange, Program, dim_of
from ...base import NoMatch, Note, Pass, PassContext, PassResult, decline, skip
from ..mask_graph import mask_graph
from ..masks import CAUSAL, Kind, kind_of


@dataclass(frozen=True)
class BuiltInMask(Pass):
    """Replace a mask that only says "causal", or nothing at all, by Attention's own attribute.

    The mask's nodes are evaluated at several lengths. It saves the [sequence, sequence] tensor and its nodes,
    and lets CUDA choose flash attention, which takes no mask.
    """

    name: ClassVar[str] = "built-in-mask"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Try every Attention that has a mask; layers that share one are judged once."""
        hits: list[Note] = []
        declined: list[Note] = []
        judged: dict[tuple[ir.Value, int | str, bool], Kind | NoMatch] = {}
        for graph in program.graphs():
            for node in tuple(graph):
                if node.op_type != "Attention" or node.domain != "" or len(node.inputs) < 4:
                    continue
                name = node.name or node.op_type
                try:
                    hits.append(Note(name, _rewrite(node, program.dims, judged)))
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(name, left.reason))
        return PassResult(len(hits), tuple(hits), tuple(declined))


def _rewrite(
    node: ir.Node, dims: dict[str, DimRange], judged: dict[tuple[ir.Value, int | str, bool], Kind | NoMatch]
) -> str:
    query, key, _, mask = node.inputs[:4]
    if mask is None or query is None or key is None:
        skip()
    if any(value is not None for value in node.inputs[4:]):
        decline("it reads a cache, whose length a built-in mask would have to know")
    length = _length(query)
    if length is None or length != _length(key):
        decline("queries and keys are not known to have the same length")
    causal = bool(node.attributes.get_int("is_causal", 0))
    case = (mask, length, causal)
    if case not in judged:
        try:
            judged[case] = kind_of(mask_graph(mask), length, dims, causal)
        except NoMatch as left:
            judged[case] = left
    kind = judged[case]
    if isinstance(kind, NoMatch):
        raise kind

    at = Rewriter(node)
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    attributes["is_causal"] = int(kind == CAUSAL)
    results = at.ops("Attention", *node.inputs[:3], outputs=len(node.outputs), **attributes)
    for old, new in zip(node.outputs, results, strict=True):
        if old.name:
            at.replace(old, new)
    return f"its mask is {kind} at every length"


def _length(value: ir.Value) -> int | str | None:
    """The sequence axis of [batch, heads, sequence, size] or [batch, sequence, hidden]."""
    if value.shape is None or len(value.shape) not in (3, 4):
        return None
    length = dim_of(value.shape[-2])
    return length if isinstance(length, int) or (isinstance(length, str) and length.isidentifier()) else None
