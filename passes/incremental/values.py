"""What a decoder's values depend on: the tokens themselves, only how many there are, or nothing."""

from __future__ import annotations

import re
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
    on the ids; ``sized``: values that depend only on their shape (positions, rotary tables, masks).
    ``sources``: inputs of an encoder; ``encoded``: values that depend on them, on neither the ids nor their
    number; ``crossed``: on them and on how many ids there are. What is in none is the same for all inputs.
    """

    graph: ir.Graph
    tokens: ir.Value
    batch: Dim
    sequence: str
    masks: frozenset[ir.Value]
    positions: frozenset[ir.Value]
    sources: tuple[ir.Value, ...]
    data: frozenset[ir.Value]
    sized: frozenset[ir.Value]
    encoded: frozenset[ir.Value]
    crossed: frozenset[ir.Value]

    @property
    def substituted(self) -> frozenset[ir.Value]:
        """The inputs that stand for ones or for positions."""
        return self.masks | self.positions


def sort_values(graph: ir.Graph) -> Values:
    """Sort the values of ``graph``. Raises: NoMatch, with a reason if it looked like a decoder."""
    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    tokens = _tokens(graph, inputs)
    if not any(n.op_type == "Attention" and n.domain == "" for n in graph):
        if any(n.op_type == "Softmax" for n in graph):
            decline("no attention was recognised (--why-not raise-attention may say why)")
        skip()
    assert tokens.shape is not None
    batch, sequence = map(dim_of, tokens.shape)
    if not isinstance(sequence, str) or not sequence.isidentifier():
        decline(f"the sequence of {tokens.name} has the fixed length {sequence}: export it dynamic")
    masks, positions, sources = set[ir.Value](), set[ir.Value](), list[ir.Value]()
    for other in inputs:
        if other is tokens:
            continue
        shape = [] if other.shape is None else [dim_of(d) for d in other.shape]
        role = masks if "mask" in str(other.name) else positions if "position" in str(other.name) else None
        if sequence not in shape and shape[:1] == [batch]:
            sources.append(other)
        elif role is not None and shape == [batch, sequence]:
            role.add(other)
        else:
            decline(f"input {other.name} is neither token ids, padding mask nor positions of {sequence}")
    known = _Dependence(graph, tokens, batch, sequence, masks | positions, sources)
    return Values(
        graph,
        tokens,
        batch,
        sequence,
        frozenset(masks),
        frozenset(positions),
        tuple(sources),
        *known.sorted(),
    )


def tables(graph: ir.Graph, tokens: ir.Value) -> list[ir.Value]:
    """Tables that are indexed by ids themselves."""
    found, pending = [], [tokens]
    while pending:
        for usage in pending.pop().uses():
            node = usage.node
            if node.op_type == "Gather" and usage.idx == 1 and node.inputs[0] is not None:
                found.append(node.inputs[0])
            elif node.op_type in ("Cast", "Reshape", "Identity") and usage.idx == 0:
                pending.append(node.outputs[0])
    return found


def logits_of(graph: ir.Graph, tokens: ir.Value) -> ir.Value | None:
    """The output with, for every token, a number for every row of the table that the ids index."""
    sizes = {dim_of(v.shape[0]) for v in tables(graph, tokens) if v.shape is not None and len(v.shape) == 2}
    length = None if tokens.shape is None else dim_of(tokens.shape[1])
    found: dict[bool, list[ir.Value]] = {True: [], False: []}
    for value in graph.outputs:
        shape = [] if value.shape is None else [dim_of(d) for d in value.shape]
        if len(shape) != 3 or not isinstance(shape[2], int) or shape[2] not in sizes:
            continue
        named = isinstance(shape[1], str) and shape[1].isidentifier() and not shape[1].startswith("unk")
        if shape[1] == length or not named:
            found[shape[1] == length].append(value)
    candidates = found[True] or found[False]
    return next((v for v in candidates if v.name == "logits"), candidates[0] if candidates else None)


def _tokens(graph: ir.Graph, inputs: list[ir.Value]) -> ir.Value:
    """The ids whose logits the model gives; of an encoder-decoder, the decoder's."""
    found = [
        v
        for v in inputs
        if v.dtype in _IDS
        and v.shape is not None
        and len(v.shape) == 2
        and not any(word in str(v.name) for word in ("mask", "position", "token_type"))
        and tables(graph, v)
    ]
    if not found:
        skip()
    given = [v for v in found if logits_of(graph, v) is not None]
    if not given:
        decline("no output has logits of the vocabulary for every token")
    if len(given) > 1:
        decline(
            f"logits may be those of {' or '.join(str(v.name) for v in given)}: their lengths have one name"
        )
    return given[0]


class _Dependence:
    """What each value depends on: the ids (``data``), their number or the batch (``sized``), a source."""

    __slots__ = ("_batch", "_graph", "_sequence", "_sources", "found")

    def __init__(
        self,
        graph: ir.Graph,
        tokens: ir.Value,
        batch: Dim,
        sequence: str,
        substituted: set[ir.Value],
        sources: list[ir.Value],
    ) -> None:
        self._graph, self._batch, self._sequence, self._sources = graph, batch, sequence, sources
        self.found: dict[ir.Value, frozenset[str]] = {tokens: frozenset({"data"})}
        self.found |= dict.fromkeys(substituted, frozenset({"length"}))
        self.found |= dict.fromkeys(sources, frozenset({"source"}))
        for node in graph:
            self._visit(node)

    def _visit(self, node: ir.Node) -> None:
        read = [v for v in node.inputs if v is not None]
        for body in _bodies(node):
            outer = [v for n in body.all_nodes() for v in n.inputs if v is not None]
            read += [v for v in outer if v.graph is self._graph]
        depends = frozenset[str]().union(*(self.found.get(v, frozenset()) for v in read))
        if node.op_type in ("Shape", "Size") and node.domain == "" and "data" in depends:
            depends = self._sizes(node)
        if depends:
            self.found |= dict.fromkeys(node.outputs, depends)

    def _sizes(self, node: ir.Node) -> frozenset[str]:
        x = node.inputs[0]
        start, end = node.attributes.get_int("start", 0), node.attributes.get("end")
        if x is None or x.shape is None:
            return frozenset({"length"})
        words = {
            word
            for dim in list(x.shape)[start : None if end is None else end.as_int()]
            for word in re.findall(r"[A-Za-z_]\w*", str(dim_of(dim)))
        }
        found = {"batch"}  # even a number is written as a size, not as what never varies
        if words - {self._batch}:
            found.add("length")
        if self._sources and words - {self._batch, self._sequence}:
            found.add("source")
        return frozenset(found)

    def sorted(self) -> tuple[frozenset[ir.Value], ...]:
        """Data, sized, encoded and crossed values."""
        kinds: tuple[set[ir.Value], ...] = (set(), set(), set(), set())
        for value, depends in self.found.items():
            if "data" in depends:
                kinds[0].add(value)
            elif "source" not in depends:
                kinds[1].add(value)
            else:
                kinds[3 if "length" in depends else 2].add(value)
        return tuple(map(frozenset, kinds))


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
    varying = values.data, values.sized, values.encoded, values.crossed
    return is_constant(value) or not any(value in kind for kind in varying)
