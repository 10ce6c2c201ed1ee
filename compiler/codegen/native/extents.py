"""Sizes that follow from what an input holds: the keys of the longest row of a cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ...ir.constants import scalar
from ...program import dim_of

_SAME = frozenset(("Squeeze", "Unsqueeze", "Reshape", "Identity"))


@dataclass(frozen=True, slots=True)
class Extent:
    """``name``: a dimension of the graph's values, the greatest element of the input ``lengths``, which has
    ``count`` of them, and ``added``. The runtime refuses lengths for which it would be more than ``bound``.
    """

    name: str
    lengths: int
    count: str | int
    added: str | int
    bound: str | int


def extents(graph: ir.Graph) -> list[Extent]:
    """The extents of a graph whose attentions write a cache behind lengths."""
    known = next(_caches(graph), None)
    if known is None:
        return []
    lengths, added, bound = known
    inputs = [v for v in graph.inputs if v.name not in graph.initializers]
    count = dim_of(lengths.shape[0]) if lengths.shape is not None else None
    found: dict[str, Extent] = {}
    for node in graph:
        if node.op_type == "Range" and node.domain == "" and _counts(node, lengths, added):
            shape = node.outputs[0].shape
            name = None if shape is None else dim_of(shape[0])
            if isinstance(name, str) and count is not None:
                found[name] = Extent(name, inputs.index(lengths), count, added, bound)
    return list(found.values())


def _caches(graph: ir.Graph) -> Iterator[tuple[ir.Value, str | int, str | int]]:
    """Of every attention over a cache: the lengths, how many tokens come behind them, the capacity."""
    for node in graph:
        if node.op_type not in ("FusedAttention", "CachedAttention") or len(node.inputs) < 6:
            continue
        query, past, lengths = node.inputs[0], node.inputs[3], node.inputs[5]
        if query is None or past is None or lengths is None or not lengths.is_graph_input():
            continue
        if query.shape is not None and past.shape is not None:
            tokens, capacity = dim_of(query.shape[2]), dim_of(past.shape[2])
            if tokens is not None and capacity is not None:
                yield lengths, tokens, capacity


def _counts(node: ir.Node, lengths: ir.Value, added: str | int) -> bool:
    """Whether a Range counts from 0 to the greatest length and ``added``."""
    start, limit, step = node.inputs
    total = _behind(limit)
    if scalar(start) != 0 or scalar(step) != 1 or total is None or total.op_type != "Add":
        return False
    terms = [_behind(value) for value in total.inputs]
    greatest = [t for t in terms if t is not None and t.op_type == "ReduceMax" and t.inputs[0] is lengths]
    shapes = [t for t in terms if t is not None and t.op_type == "Shape" and _is_size(t, added)]
    return len(greatest) == len(shapes) == 1


def _is_size(node: ir.Node, size: str | int) -> bool:
    """Whether a Shape node gives this one size."""
    source, end = node.inputs[0], node.attributes.get("end")
    if source is None or source.shape is None:
        return False
    dims = [dim_of(d) for d in source.shape]
    return dims[node.attributes.get_int("start", 0) : None if end is None else end.as_int()] == [size]


def _behind(value: ir.Value | None) -> ir.Node | None:
    """The node that computes a number, seen through what only gives it another rank."""
    node = None if value is None else value.producer()
    while node is not None and node.domain == "" and node.op_type in _SAME:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return node
