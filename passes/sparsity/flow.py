"""Where a layer's units (channels, heads) are in a graph: axes of values whose elements belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, is_constant
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Dim, dim_of
from ...compiler.reference import Array

NONE = -1
"""Of an element that belongs to no unit: it always stays."""

Found: TypeAlias = "Iterator[tuple[int, int, Array]]"
"""Slot, axis and units that a rule concludes; slots are inputs from 0 on, outputs from -1 down."""


class Blocked(Exception):  # noqa: N818 - control flow of a rewrite, never seen by a user
    """The units can't be followed; ``reason`` names the node that is in the way."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rule:
    """What an operator does with units.

    ``spread(node, flow)`` concludes from the axes that are known at a node the others, in both directions.
    ``cut(node, flow, at)`` changes attributes and constant sizes once the kept units are chosen; weights
    and recorded shapes are cut for it.
    """

    spread: Callable[[ir.Node, Flow], Found]
    cut: Callable[[ir.Node, Flow, Rewriter], None] | None = None


@dataclass(slots=True)
class Flow:
    """The axes that units lie along, found from one by following every node that touches it.

    ``axes``: by value or, for constants, by node and slot: axis → int32[size], the unit of each element or
    NONE. ``consumers``: products that sum over the units; ``producers``: those whose outputs are units; the
    weight is input 1 of both. ``nodes``: all that were met, in order. ``kept``: bool[units], once chosen.
    ``edges``: inputs and outputs of the graph where units may be; ``ends``: values whose readers don't count;
    ``wholes``: values of which each reader may take its own elements, as of constants.
    """

    rules: Mapping[str, Rule]
    graph: ir.Graph | ir.Function | None
    axes: dict[ir.Value | tuple[ir.Node, int], dict[int, Array]] = field(default_factory=dict)
    consumers: dict[ir.Node, None] = field(default_factory=dict)
    producers: dict[ir.Node, None] = field(default_factory=dict)
    nodes: dict[ir.Node, None] = field(default_factory=dict)
    kept: Array | None = None
    edges: frozenset[ir.Value] = frozenset()
    ends: frozenset[ir.Value] = frozenset()
    wholes: frozenset[ir.Value] = frozenset()
    _pending: list[ir.Value] = field(default_factory=list)

    def follow(self, value: ir.Value, axis: int, units: Array) -> None:
        """Find everything that ``units`` along ``axis`` of ``value`` reach. Raises: Blocked."""
        self._mark(value, value, axis, units)
        while self._pending:
            reached = self._pending.pop()
            maker = reached.producer()
            if (maker is None or reached.is_graph_output()) and reached not in self.edges:
                role = "output" if maker is not None else "input"
                raise Blocked(f"they are in the {role} {reached.name} of the model")
            touched = [] if maker is None else [maker]
            touched += [] if reached in self.ends else [usage.node for usage in reached.uses()]
            for node in dict.fromkeys(touched):
                self._visit(node)

    def at(self, node: ir.Node, slot: int) -> dict[int, Array]:
        """Units by axis, none so far or none at all: empty."""
        value = _value(node, slot)
        if value is None:
            return {}
        return self.axes.get(value) or self.axes.get((node, slot)) or {}

    def keeps(self, units: Array) -> Array:
        """int64: which elements stay."""
        assert self.kept is not None
        return np.flatnonzero((units == NONE) | self.kept[np.maximum(units, 0)])

    def _visit(self, node: ir.Node) -> None:
        rule = self.rules.get(f"{node.domain}::{node.op_type}".removeprefix("::"))
        if rule is None or node.graph is not self.graph:
            raise Blocked(f"{node.op_type} {node.name} touches them")
        self.nodes[node] = None
        for slot, axis, units in rule.spread(node, self):
            value = _value(node, slot)
            if value is None:
                continue
            taken = slot >= 0 and (is_constant(value) or value in self.wholes)
            self._mark(value, (node, slot) if taken else value, axis, units)

    def _mark(self, value: ir.Value, key: ir.Value | tuple[ir.Node, int], axis: int, units: Array) -> None:
        if (units == NONE).all():
            return
        known = self.axes.setdefault(key, {})
        if size(value, axis) != len(units):
            raise Blocked(f"the size of {value.name} along axis {axis} is not known")
        old = known.get(axis)
        if old is not None:
            both = (old != NONE) & (units != NONE)
            if (old[both] != units[both]).any():
                raise Blocked(f"{value.name} mixes them")
            units = np.where(old == NONE, units, old)
            if np.array_equal(old, units):
                return
        known[axis] = units.astype(np.int32)
        if isinstance(key, ir.Value):
            self._pending.append(key)


def _value(node: ir.Node, slot: int) -> ir.Value | None:
    if slot < 0:
        return node.outputs[~slot]
    return node.inputs[slot] if slot < len(node.inputs) else None


def dims(value: ir.Value) -> list[Dim]:
    """Sizes and symbols. Raises: Blocked if not even the rank is known."""
    if value.shape is None:
        raise Blocked(f"the shape of {value.name} is not known")
    return [dim_of(dim) for dim in value.shape]


def size(value: ir.Value, axis: int) -> Dim:
    """Of one axis; None if ``value`` has no such axis."""
    found = dims(value)
    return found[axis] if -len(found) <= axis < len(found) else None


def rank(value: ir.Value | None) -> int:
    """Number of axes."""
    assert value is not None
    return len(dims(value))


def integers(node: ir.Node, slot: int) -> list[int] | None:
    """A constant input of integers; None if there is no such input. Raises: Blocked if it is computed."""
    value = node.inputs[slot] if slot < len(node.inputs) else None
    if value is None:
        return None
    array = constant(value)
    if array is None:
        raise Blocked(f"{value.name}, which {node.op_type} {node.name} reads, is computed")
    return [int(item) for item in array.ravel()]
