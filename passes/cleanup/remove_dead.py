"""Dead code: nodes nothing reads, and initializers nothing reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.rewrite import discard
from ...compiler.program import Program
from ..base import Note, Pass, PassContext, PassResult


@dataclass(frozen=True)
class RemoveDead(Pass):
    """Remove nodes and initializers that no output depends on."""

    name: ClassVar[str] = "remove-dead"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Users first, so that one sweep over a graph and its subgraphs finds everything."""
        hits: list[Note] = []
        for model in program.entries.values():
            _sweep(model.graph, hits)
            for function in model.functions.values():
                _sweep(function, hits)
        return PassResult(len(hits), tuple(hits))


def _sweep(graph: ir.Graph | ir.Function, hits: list[Note]) -> None:
    for node in reversed(graph):
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            discard(node)
            hits.append(Note(node.name or node.op_type, "no output depends on it"))
            continue
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            for subgraph in _subgraphs(attribute):
                _sweep(subgraph, hits)
    if isinstance(graph, ir.Graph):
        for name, value in list(graph.initializers.items()):
            if not (value.uses() or value.is_graph_input() or value.is_graph_output()):
                del graph.initializers[name]
                hits.append(Note(name, "no node reads this initializer"))


def _subgraphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return list(attribute.as_graphs())
    return []
