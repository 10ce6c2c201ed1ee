"""The nodes that compute an attention mask, cut out so that they can be evaluated at any size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor
from ...compiler.ir.evaluate import evaluate
from ...compiler.program import dim_of
from ...compiler.reference import Array
from ..base import decline

_MOST_NODES = 400
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclass(frozen=True, slots=True)
class MaskGraph:
    """The nodes behind a mask that depends on sizes (``shapes``: results of Shape) and constants alone."""

    mask: ir.Value
    nodes: tuple[ir.Node, ...]
    shapes: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]

    @property
    def symbols(self) -> set[str]:
        """Names of the sizes it depends on. Raises: NoMatch if one has none."""
        return {symbol for value in self.shapes for symbol in _symbols(value)}

    def at(self, sizes: Mapping[str, int]) -> Array:
        """The mask where the named dimensions have ``sizes``."""
        swap: dict[ir.Value, ir.Value] = {}
        inputs, feeds = [], {}
        for index, value in enumerate(self.shapes):
            swap[value] = ir.val(f"shape_{index}", ir.DataType.INT64, [None])
            inputs.append(swap[value])
            feeds[f"shape_{index}"] = _dims(value, sizes)
        initializers = []
        for index, value in enumerate(self.constants):
            swap[value] = ir.val(f"constant_{index}", const_value=constant_tensor(value))
            initializers.append(swap[value])
        nodes = []
        for node in self.nodes:
            operands = [None if v is None else swap[v] for v in node.inputs]
            attributes = {name: attr.value for name, attr in node.attributes.items()}
            copy = ir.node(node.op_type, operands, attributes, num_outputs=len(node.outputs))
            swap.update(zip(node.outputs, copy.outputs, strict=True))
            nodes.append(copy)
        opset = 23 if self.mask.graph is None else self.mask.graph.opset_imports.get("", 23)
        graph = ir.Graph(
            inputs,
            [swap[self.mask]],
            nodes=nodes,
            initializers=initializers,
            opset_imports={"": opset},
            name="mask",
        )
        (result,) = evaluate(ir.Model(graph, ir_version=10), feeds).values()
        return result


def mask_graph(mask: ir.Value) -> MaskGraph:
    """The nodes behind ``mask``. Raises: NoMatch if it depends on more than sizes and constants."""
    nodes: dict[ir.Node, None] = {}
    shapes: dict[ir.Value, None] = {}
    constants: dict[ir.Value, None] = {}
    seen: set[ir.Node] = set()

    def visit(value: ir.Value) -> None:
        node = value.producer()
        if constant_tensor(value) is not None:
            constants[value] = None
        elif node is None or node.domain != "":
            decline(f"the mask depends on {value.name}, not on sizes alone")
        elif node.op_type == "Shape":
            shapes[value] = None
        elif node not in seen:
            seen.add(node)
            if len(seen) > _MOST_NODES:
                decline(f"the mask takes more than {_MOST_NODES} nodes")
            if any(a.type in _GRAPHS for a in node.attributes.values()):
                decline("the mask is computed with control flow")
            for operand in node.inputs:
                if operand is not None:
                    visit(operand)
            nodes[node] = None

    visit(mask)
    return MaskGraph(mask, tuple(nodes), tuple(shapes), tuple(constants))


def _symbols(shape: ir.Value) -> set[str]:
    source = _source(shape)
    names = {dim_of(d) for d in source}
    unnamed = [n for n in names if not isinstance(n, int) and not (isinstance(n, str) and n.isidentifier())]
    if unnamed:
        decline(f"the mask depends on a size that has no name ({unnamed[0]})")
    return {n for n in names if isinstance(n, str)}


def _dims(shape: ir.Value, sizes: Mapping[str, int]) -> Array:
    values = [d if isinstance(d, int) else sizes[str(d.value)] for d in _source(shape)]
    return np.array(values, np.int64)


def _source(shape: ir.Value) -> list[int | ir.SymbolicDim]:
    """The dimensions a Shape node gives."""
    node = shape.producer()
    x = None if node is None else node.inputs[0]
    if node is None or x is None or x.shape is None:
        decline("the mask depends on a shape that is not known")
    start, end = node.attributes.get_int("start", 0), node.attributes.get("end")
    return list(x.shape)[start : None if end is None else end.as_int()]
