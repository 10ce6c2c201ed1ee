"""What patterns are matched with: regions of private nodes, commutative operands, axes, numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.constants import constant, scalar
from ...compiler.ir.shapes import infer_shapes
from ...compiler.program import Program
from ..base import PassContext, PassResult, RewritePass, decline


@dataclass(frozen=True)
class RaisingPass(RewritePass):
    """A rewrite into a semantic operator: left out below the ``opset`` that has it, types inferred after."""

    opset: ClassVar[int] = 1

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Rewrite, then give the new values their shapes."""
        if any(model.opset_imports.get("", 1) < self.opset for model in program.entries.values()):
            return PassResult()
        result = super().run(program, context)
        if result.changed:
            infer_shapes(program)
        return result


class Region:
    """The nodes of one pattern, collected while it is matched from its output towards its inputs."""

    __slots__ = ("nodes",)

    def __init__(self, *nodes: ir.Node) -> None:
        self.nodes: dict[ir.Node, None] = dict.fromkeys(nodes)

    def find(self, value: ir.Value | None, *op_types: str) -> ir.Node | None:
        """The standard operator of one of ``op_types`` that produces ``value``, now part of the region."""
        node = made_by(value, *op_types)
        if node is not None:
            self.nodes[node] = None
        return node

    def copy(self) -> Region:
        """For trying an alternative: assign its ``nodes`` back if it matched."""
        return Region(*self.nodes)

    def close(self, *outputs: ir.Value) -> None:
        """Require that only ``outputs`` leave the region. Raises: NoMatch naming the value that escapes."""
        for node in self.nodes:
            for value in node.outputs:
                if value in outputs:
                    continue
                if value.is_graph_output():
                    decline(f"{value.name!r} inside the pattern is a graph output")
                if any(user not in self.nodes for user in value.consumers()):
                    decline(f"{value.name!r} inside the pattern is read elsewhere")


def made_by(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node that produces ``value`` if it is a standard operator of one of ``op_types``."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def operands(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The two inputs of a commutative node in both orders."""
    a, b = node.inputs[:2]
    if a is not None and b is not None:
        yield a, b
        yield b, a


def operand_and_number(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The varying input and the number of a commutative node with one scalar constant."""
    for x, other in operands(node):
        number = scalar(other)
        if number is not None and scalar(x) is None:
            return x, float(number)
    return None


def scaled(value: ir.Value | None) -> tuple[ir.Value, float] | None:
    """``(x, c)`` where ``value`` is ``x * c`` or ``x / (1/c)`` with a scalar constant."""
    node = made_by(value, "Mul", "Div")
    if node is None:
        return None
    if node.op_type == "Mul":
        return operand_and_number(node)
    number = scalar(node.inputs[1])
    return (node.inputs[0], 1.0 / number) if number and node.inputs[0] is not None else None


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, if known."""
    return None if value is None or value.shape is None else len(value.shape)


def require_rank(x: ir.Value, out: ir.Value) -> None:
    """Require that ``out`` has the rank of ``x``: a constant of shape [1, 1, 1] would have raised it.

    Raises: NoMatch if it has another, or if either is unknown.
    """
    if rank(x) is None or rank(x) != rank(out):
        decline("a constant of more dimensions changes the rank, or a rank is unknown")


def size(value: ir.Value | None, axis: int) -> int | None:
    """Static size of a dimension, if known."""
    count = rank(value)
    if value is None or value.shape is None or count is None or not -count <= axis < count:
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def reduced_axes(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a Reduce node, counted from the front and sorted; None if unknown."""
    count = rank(node.inputs[0])
    if count is None:
        return None
    given: list[int] | None = None
    if "axes" in node.attributes:
        given = list(node.attributes.get_ints("axes", ()))
    elif len(node.inputs) > 1 and node.inputs[1] is not None:
        array = constant(node.inputs[1])
        if array is None:
            return None
        given = [int(axis) for axis in array.ravel()]
    if not given:
        return () if node.attributes.get_int("noop_with_empty_axes", 0) else tuple(range(count))
    return tuple(sorted(axis % count for axis in given))


def only_user(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value``, if nothing else does and it is no graph output."""
    users = value.consumers()
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def close_to(a: float, b: float, tolerance: float = 1e-3) -> bool:
    """Whether a constant is the expected one; exporters round to as little as half precision."""
    return abs(a - b) <= tolerance * max(abs(a), abs(b), 1e-12)
