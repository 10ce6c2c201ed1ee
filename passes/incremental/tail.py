"""What is computed for selected tokens only: the nodes behind the last attention."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from .token_axes import TokenAxes, rank

_VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")


def behind(values: Iterable[ir.Value | None]) -> set[ir.Node]:
    """The nodes that ``values`` are computed by."""
    found: set[ir.Node] = set()
    pending = [v.producer() for v in values if v is not None]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(v.producer() for v in node.inputs if v is not None)
    return found


def selectable(value: ir.Value, axes: TokenAxes) -> bool:
    """Whether tokens can be selected from ``value``: it is [batch, tokens, ...], but not the ids."""
    found = axes.axes[value]
    first = (found.batch, found.token) == (-rank(value), 1 - rank(value))
    return first and value is not axes.values.tokens


def tail_nodes(axes: TokenAxes, needed: set[ir.Node]) -> set[ir.Node]:
    """Nodes among ``needed`` that no attention depends on, as far up as their tokens can be selected."""
    mixing = behind(v for node in axes.attention for v in node.inputs) | set(axes.attention)
    tail: set[ir.Node] = set()
    for node in axes.values.graph:
        if node in needed and node not in mixing and any(o in axes.axes for o in node.outputs):
            outside = [v for v in node.inputs if v in axes.axes and v.producer() not in tail]
            if all(selectable(v, axes) for v in outside if v is not None):
                tail.add(node)
    while leaving := [node for node in tail if _leaves(node, tail, axes, needed)]:
        tail.difference_update(leaving)
    return tail


def _leaves(node: ir.Node, tail: set[ir.Node], axes: TokenAxes, needed: set[ir.Node]) -> bool:
    """Whether the tail can't keep ``node``: it is read outside, or a view better selected from."""
    readers = {u for o in node.outputs for u in o.consumers() if u in needed}
    if any(u not in tail and any(o in axes.axes for o in u.outputs) for u in readers):
        return True
    inputs = {v.producer() for v in node.inputs if v is not None and v in axes.axes}
    return node.op_type in _VIEWS and not tail & inputs and selectable(node.outputs[0], axes)
