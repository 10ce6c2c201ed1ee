"""Common subexpressions: nodes that compute the same from the same values are computed once."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.provenance import merge_sources
from ...compiler.ir.rewrite import discard
from ...compiler.program import Program
from ..base import Note, Pass, PassContext, PassResult
from .forward import may_forward

RANDOM = frozenset(
    {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    }
)
"""Operators whose two calls may differ: never merged and never folded."""


@dataclass(frozen=True)
class EliminateCommon(Pass):
    """Compute equal expressions once, subgraphs reusing what the outer graph has computed."""

    name: ClassVar[str] = "eliminate-common"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Visit nodes in order; the first of equal nodes stays."""
        hits: list[Note] = []
        declined: list[Note] = []
        for model in program.entries.values():
            _visit(model.graph, {}, hits, declined)
        return PassResult(len(hits), tuple(hits), tuple(declined))


def _visit(graph: ir.Graph, outer: dict[Hashable, ir.Node], hits: list[Note], declined: list[Note]) -> None:
    seen = dict(outer)
    for node in tuple(graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                _visit(attribute.as_graph(), seen, hits, declined)
        key = _key(node)
        if key is None:
            continue
        first = seen.setdefault(key, node)
        if first is node:
            continue
        name = node.name or node.op_type
        reasons = [r for o, n in zip(node.outputs, first.outputs, strict=True) if (r := may_forward(o, n))]
        if reasons:
            declined.append(Note(name, f"equals {first.name}, but {reasons[0]}"))
            continue
        _merge(node, first)
        hits.append(Note(name, f"equals {first.name}"))


def _merge(node: ir.Node, first: ir.Node) -> None:
    for old, new in zip(node.outputs, first.outputs, strict=True):
        name = old.name if old.is_graph_output() else None
        if new.shape is None:
            new.shape = old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if name is not None:
            old.name = None
            new.name = name
    merge_sources(first, [node])
    discard(node)


def _key(node: ir.Node) -> Hashable | None:
    if node.op_type in RANDOM or node.domain not in ("", "ai.onnx.ml", "com.microsoft") or not node.inputs:
        return None
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.is_ref() or attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return None
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.size > 1024 or tensor.dtype == ir.DataType.STRING:
                return None
            value = (tensor.dtype, tuple(tensor.shape), tensor.tobytes())
        elif isinstance(value, (list, tuple)):
            value = tuple(value)
        elif not isinstance(value, (int, float, str, bytes)):
            return None
        attributes.append((name, attribute.type, value))
    inputs = tuple(None if v is None else id(v) for v in node.inputs)
    used = tuple(bool(o.name) for o in node.outputs)
    return (node.domain, node.op_type, node.overload, inputs, tuple(attributes), used)
