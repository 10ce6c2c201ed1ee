"""Operators on single elements: one loop per tree of them whose values in between nothing else reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ....ir.constants import scalar
from .base import Entry, Operator, bare
from .expressions import CHEAP, EXPRESSIONS, expression_of, literal, reason
from .loops import SMALL, loop, read, written


def inlined(node: ir.Node) -> bool:
    """Whether the node's value is computed inside the loop of the one node that reads it."""
    value = node.outputs[0]
    uses = value.uses()
    if value.is_graph_output() or len(uses) != 1 or reason(node) is not None:
        return False
    (reader, _), *_ = uses
    if reader.graph is not node.graph or reason(reader) is not None:
        return False
    return node.op_type in CHEAP or _same_shape(value, reader.outputs[0])


def emit(node: ir.Node, entry: Entry) -> None:
    """A loop over the node's output; nothing if its reader computes it."""
    if inlined(node):
        return
    leaves = list(dict.fromkeys(_leaves(node)))
    shape = entry.sizes(node.outputs[0])
    operands = [
        read(entry.view(value), shape, f"x{place or ''}") for place, value in enumerate(leaves)
    ]  # fmt: skip
    target = written(entry.new(node.outputs[0]))

    def body(elements: Sequence[str]) -> list[str]:
        names = dict(zip(leaves, elements[1:], strict=True))
        return [f"{elements[0]} = {bare(_text(node, names))};"]

    dear = any(n.op_type not in CHEAP for n in _tree(node))
    entry.step(node, loop(shape, [target, *operands], body, SMALL // 4 if dear else SMALL))


def _tree(node: ir.Node) -> Iterator[ir.Node]:
    """The node and those that are computed in its loop."""
    yield node
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and inlined(producer):
            yield from _tree(producer)


def _leaves(node: ir.Node) -> Iterator[ir.Value]:
    """What the loop reads from memory."""
    for member in _tree(node):
        for value in member.inputs:
            if value is None or _number(value) is not None:
                continue
            producer = value.producer()
            if producer is None or not inlined(producer):
                yield value


def _number(value: ir.Value) -> str | None:
    """A constant of one element, as it is written in an expression."""
    number = scalar(value)
    return None if number is None or value.dtype is None else literal(number, value.dtype)


def _text(node: ir.Node, names: dict[ir.Value, str]) -> str:
    args = []
    for value in node.inputs:
        if value is None:
            continue
        producer = value.producer()
        if value in names:
            args.append(names[value])
        elif producer is not None and inlined(producer):
            args.append(_text(producer, names))
        else:
            args.append(_number(value) or "")
    return expression_of(node, args)


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and a.shape == b.shape


OPERATORS = {name: Operator(emit, reason) for name in EXPRESSIONS}

__all__ = ["OPERATORS", "emit", "inlined"]
