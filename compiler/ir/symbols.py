"""Names for sizes that onnx's inference leaves open: ranges, reshapes, expansions, broadcasts of symbols.

onnx names every size it can't derive ``unk__N``, the same size the same way. This walk derives what such
a name stands for where it first appears, following the sizes that graphs compute (Shape, Gather, Concat,
Where, ...), and then replaces it everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from ..dialect.standard import infer_standard
from ..program import Dim, dim_of
from .constants import constant
from .signatures import signature
from .symbol_contents import CONTENTS, LIMIT
from .symbol_sizes import DIMS, Dims, is_open

_SINCE = 13
"""Opset from which Slice, Squeeze, Unsqueeze and Split read sizes from inputs, as the rules below expect."""


def resolve_symbols(graph: ir.Graph) -> None:
    """Replace the open sizes of ``graph`` and its subgraphs by what they can be derived to be."""
    walk = Walk(graph)
    for node in graph:
        walk.visit(node)
    if walk.meaning:
        for scope in (graph, *graph.subgraphs()):
            for node in scope:
                for value in node.outputs:
                    walk.rename(value)


class Walk:
    """``meaning``: what open names turned out to be; ``contents``: integers in values; ``seen``: names.

    ``is_open`` says of a size whether it is worth deriving; without it, the names that inference gave are.
    Models of older opsets, whose operators have other forms, are left as they are.
    """

    __slots__ = ("contents", "is_open", "meaning", "opsets", "seen")

    def __init__(self, graph: ir.Graph, is_open: Callable[[Dim], bool] = is_open) -> None:
        self.is_open = is_open
        self.meaning: dict[str, Dim] = {}
        self.contents: dict[ir.Value, Dims] = {}
        self.seen = {dim_of(d) for v in graph.inputs for d in v.shape or ()}
        self.opsets = graph.opset_imports

    def dims(self, value: ir.Value | None) -> Dims | None:
        """The sizes of ``value`` as known by now; None if not even their number is."""
        if value is None or value.shape is None:
            return None
        return [self.now(dim_of(d)) for d in value.shape]

    def now(self, dim: Dim) -> Dim:
        """What ``dim`` is known to be by now."""
        return self.meaning.get(dim, dim) if isinstance(dim, str) else dim

    def rename(self, value: ir.Value) -> bool:
        """Record what the open sizes of ``value`` turned out to be; whether any did."""
        dims = self.dims(value)
        changed = dims is not None and dims != list(map(dim_of, value.shape or ()))
        if changed:
            value.shape = ir.Shape(dims or ())
        return changed

    def read(self, value: ir.Value | None) -> Dims | None:
        """The integers in ``value``, each known, a symbol or None; None if nothing is known of them."""
        if value is None:
            return None
        if value in self.contents:
            return [self.now(d) for d in self.contents[value]]
        array = constant(value, limit=LIMIT)
        if array is not None and array.dtype.kind in "iub" and array.ndim <= 1:
            return [int(v) for v in array.reshape(-1)]
        size = self.dims(value)
        if size is not None and len(size) <= 1 and all(isinstance(d, int) and d <= LIMIT for d in size):
            return [None] * math.prod(d for d in size if isinstance(d, int))
        return None

    def visit(self, node: ir.Node) -> None:
        """Follow the integers that ``node`` computes, and derive the open sizes that first appear in it."""
        opset = self.opsets.get("", 0)
        known = signature("", node.op_type, opset) if node.domain == "" and opset >= _SINCE else None
        if known is None or not known.min_inputs <= len(node.inputs) <= known.max_inputs:
            return
        follow, dims = CONTENTS.get(node.op_type), self.dims(node.outputs[0])
        if follow is not None and dims is not None and len(dims) <= 1:
            found = follow(self, node)
            if found is not None and len(found) <= LIMIT:
                self.contents[node.outputs[0]] = found
        fresh = [
            dim
            for value in node.outputs
            for dim in self.dims(value) or ()
            if isinstance(dim, str) and self.is_open(dim) and dim not in self.seen
        ]
        if fresh:
            self.derive(node)
        self.seen.update(fresh)

    def derive(self, node: ir.Node) -> None:
        """Find a meaning for the open sizes of the node's outputs."""
        rule = DIMS.get(node.op_type)
        derived = [rule(self, node)] if rule is not None else self.inferred_again(node)
        for value, dims in zip(node.outputs, derived, strict=False):
            recorded = self.dims(value)
            if dims is None or recorded is None or len(dims) != len(recorded):
                continue
            for old, new in zip(recorded, dims, strict=True):
                if new in (None, old) or not isinstance(old, str):
                    continue
                if self.is_open(old) and old not in self.seen:
                    self.meaning[old] = new

    def inferred_again(self, node: ir.Node) -> list[Dims | None]:
        """onnx's inference of the one node, now that more of its inputs is known."""
        from onnx.shape_inference import InferenceError

        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return []
        for value in node.inputs:
            if value is not None:
                self.rename(value)
        try:
            found = infer_standard(
                node.op_type, node.inputs, node.attributes, len(node.outputs), opsets=self.opsets
            )
        except InferenceError:
            return []
        return [None if shape is None else [dim_of(d) for d in shape] for _, shape in found]
