"""Linear layers of one input side by side: query, key and value; keys and values of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.ir.provenance import add_passes
from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import Program
from ...base import Note, Pass, PassContext, PassResult
from .layer import Layer
from .weights import again, is_quantized

PARTS = 3
"""Weights that one Linear takes."""


@dataclass(frozen=True)
class NativeJoin(Pass):
    """Compute layers that read the same activations in one Linear, whose result is split into views.

    The activations are normed and rounded once, and the threads meet once.
    """

    name: ClassVar[str] = "native-join"
    optional: ClassVar[bool] = False

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every activation that several layers read."""
        hits: list[Note] = []
        declined: list[Note] = []
        for graph in list(program.graphs()):
            for nodes in _groups(graph):
                if len(nodes) == 1:
                    continue
                text = _join(nodes, self.name)
                hits.append(Note(str(nodes[0].name), text))
            declined += _outputs(graph)
        return PassResult(len(hits), tuple(hits), tuple(declined))


def _groups(graph: ir.Graph | ir.Function) -> list[list[ir.Node]]:
    """Layers that can be joined, at most ``PARTS`` together, in their order."""
    found: dict[tuple[object, ...], list[ir.Node]] = {}
    for node in graph:
        layer = Layer.of(node)
        if layer is None or layer.gated or layer.residual is not None or len(layer.parts) > 1:
            continue
        if node.outputs[0].is_graph_output():
            continue
        kind = layer.norm, layer.epsilon, layer.norm_scale, layer.norm_bias, layer.activation
        found.setdefault((layer.x, *kind, is_quantized(layer.parts[0][0])), []).append(node)
    groups = []
    for nodes in found.values():
        count = -(-len(nodes) // PARTS)
        groups += [[nodes[i] for i in part] for part in np.array_split(range(len(nodes)), count)]
    return groups


def _outputs(graph: ir.Graph | ir.Function) -> list[Note]:
    """Layers left alone because their result is an output of the graph."""
    layers = [(node, Layer.of(node)) for node in graph]
    readers: dict[ir.Value, int] = {}
    for _, layer in layers:
        if layer is not None:
            readers[layer.x] = readers.get(layer.x, 0) + 1
    return [
        Note(str(node.name), "its result is an output of the model")
        for node, layer in layers
        if layer is not None and node.outputs[0].is_graph_output() and readers[layer.x] > 1
    ]


def _join(nodes: Sequence[ir.Node], name: str) -> str:
    layers = [layer for layer in map(Layer.of, nodes) if layer is not None]
    first = layers[0]
    at = Rewriter(nodes[0])
    parts = tuple((again(weight, at), bias) for layer in layers for weight, bias in layer.parts)
    whole = replace(first, parts=parts).emit(at)
    rows = [layer.width for layer in layers]
    cuts = at.const(np.array(rows), "rows")
    outputs = at.ops("Split", whole, cuts, outputs=len(layers), axis=-1)
    for node, part, count in zip(nodes, outputs, rows, strict=True):
        old = node.outputs[0]
        part.type = whole.type
        if whole.shape is not None:
            part.shape = ir.Shape([*list(whole.shape)[:-1], count])
        at.replace(old, part)
    for made in at.made:
        add_passes(made, [name])
    return f"{' + '.join(map(str, rows))} outputs"
