"""A name for the number of keys that a cache holds for its longest row: lengths tell it, not shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.shapes import infer_shapes
from ....compiler.ir.symbol_sizes import is_open
from ....compiler.program import Program, dim_of
from ...base import Note, Pass, PassContext, PassResult

NAME = "keys"
"""Of the dimension, as the sizes of inputs are called."""

_SAME = frozenset(("Squeeze", "Unsqueeze", "Reshape", "Identity"))


@dataclass(frozen=True)
class NativeKeys(Pass):
    """Name the size of ranges that count the keys of the longest row, which no input's shape tells."""

    name: ClassVar[str] = "native-keys"
    optional: ClassVar[bool] = False

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Name them in every entry whose own sizes are called otherwise."""
        hits = []
        for model in program.entries.values():
            names = {dim_of(d) for value in model.graph.inputs for d in value.shape or ()}
            ranges = [] if NAME in names else list(_counting(model.graph))
            for node in ranges:
                node.outputs[0].shape = ir.Shape([NAME])
                hits.append(Note(str(node.name), f"has {NAME} elements"))
        if hits:
            infer_shapes(program)
        return PassResult(len(hits), tuple(hits))


def _counting(graph: ir.Graph) -> Iterator[ir.Node]:
    """Ranges of open size up to a number that takes in the greatest of an input's."""
    for node in graph:
        shape = node.outputs[0].shape
        if node.op_type != "Range" or shape is None or not is_open(dim_of(shape[0])):
            continue
        limit = _behind(node.inputs[1])
        if limit is not None and limit.op_type == "Add":
            terms = [_behind(value) for value in limit.inputs]
            if any(t is not None and t.op_type == "ReduceMax" and _is_input(t.inputs[0]) for t in terms):
                yield node


def _behind(value: ir.Value | None) -> ir.Node | None:
    """The node that computes a number, seen through what only gives it another rank."""
    node = None if value is None else value.producer()
    while node is not None and node.domain == "" and node.op_type in _SAME:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return node


def _is_input(value: ir.Value | None) -> bool:
    return value is not None and value.is_graph_input()
