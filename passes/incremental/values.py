"""What a decoder's values depend on: the tokens themselves, only how many there are, or nothing."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ...compiler.ir.constants import is_constant
from ...compiler.program import Dim, dim_of
from ..base import decline, skip

_IDS = (ir.DataType.INT64, ir.DataType.INT32)


@dataclass(frozen=True, slots=True)
class Values:
    """A whole-sequence model, its values sorted by what they depend on.

    ``tokens``: the input of token ids, [``batch``, ``sequence``]. ``masks``: padding masks of the same
    shape, taken as all ones; ``positions``: position ids, taken as 0, 1, 2, ... ``data``: values that depend
    on the ids; ``sized``: values that depend only on their shape (positions, rotary tables, masks). What is
    in neither is the same for all inputs.
    """

    graph: ir.Graph
    tokens: ir.Value
    batch: Dim
    sequence: str
    masks: frozenset[ir.Value]
    positions: frozenset[ir.Value]
    data: frozenset[ir.Value]
    sized: frozenset[ir.Value]

    @property
    def substituted(self) -> frozenset[ir.Value]:
        """The inputs that stand for ones or for positions."""
        return self.masks | self.positions


def sort_values(graph: ir.Graph) -> Values:
    """Sort the values of ``graph``. Raises: NoMatch, with a reason if it looked like a decoder."""
    if not any(n.op_type == "Attention" and n.domain == "" for n in graph):
        skip()
    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    tokens = next((v for v in inputs if _embedded(v)), None)
    if tokens is None or tokens.shape is None:
        skip()
    batch, sequence = map(dim_of, tokens.shape)
    if not isinstance(sequence, str) or not sequence.isidentifier():
        decline(f"the sequence of {tokens.name} has the fixed length {sequence}: export it dynamic")
    masks, positions = set[ir.Value](), set[ir.Value]()
    for other in inputs:
        if other is tokens:
            continue
        same = other.shape is not None and [dim_of(d) for d in other.shape] == [batch, sequence]
        role = masks if "mask" in str(other.name) else positions if "position" in str(other.name) else None
        if role is None or not same:
            decline(f"input {other.name} is neither token ids, padding mask nor positions of {sequence}")
        role.add(other)
    data, sized = _dependents(graph, tokens, masks | positions)
    return Values(graph, tokens, batch, sequence, *map(frozenset, (masks, positions, data, sized)))


def _embedded(value: ir.Value) -> bool:
    """Whether ``value`` is [batch, sequence] of integers that index a table."""
    if value.dtype not in _IDS or value.shape is None or len(value.shape) != 2:
        return False
    if "mask" in str(value.name) or "position" in str(value.name):
        return False
    pending, seen = [value], set[ir.Value]()
    while pending:
        found = pending.pop()
        for usage in found.uses():
            node = usage.node
            if node.op_type in ("Gather", "GatherBlockQuantized") and usage.idx == 1:
                return True
            if (
                node.op_type in ("Cast", "Reshape", "Identity")
                and usage.idx == 0
                and node.outputs[0] not in seen
            ):
                seen.add(node.outputs[0])
                pending.append(node.outputs[0])
    return False


def _dependents(
    graph: ir.Graph, tokens: ir.Value, substituted: set[ir.Value]
) -> tuple[set[ir.Value], set[ir.Value]]:
    data, sized = {tokens}, set(substituted)
    for node in graph:
        read = [v for v in node.inputs if v is not None]
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            outer = [v for g in _bodies(node) for n in g.all_nodes() for v in n.inputs if v is not None]
            read += [v for v in outer if v.graph is graph]
        if any(v in data for v in read):
            (sized if node.op_type in ("Shape", "Size") and node.domain == "" else data).update(node.outputs)
        elif any(v in sized for v in read):
            sized.update(node.outputs)
    return data, sized


def _bodies(node: ir.Node) -> list[ir.Graph]:
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return found


def is_static(value: ir.Value, values: Values) -> bool:
    """Whether ``value`` is the same for all inputs."""
    return is_constant(value) or (value not in values.data and value not in values.sized)
