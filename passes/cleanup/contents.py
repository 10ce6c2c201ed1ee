"""What is known of small integer tensors: sizes and symbols, followed from Shape through shape arithmetic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant
from ...compiler.program import Dim, dim_of

LIMIT = 64
"""Elements up to which a tensor's contents are followed."""

_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Max": max, "Min": min,
    "Div": lambda a, b: int(a / b) if b and abs(a) < 1 << 50 else a // b,
    "Equal": lambda a, b: int(a == b), "Less": lambda a, b: int(a < b), "Greater": lambda a, b: int(a > b),
    "And": lambda a, b: int(a and b), "Or": lambda a, b: int(a or b),
}  # fmt: skip
_NEUTRAL = {"Add": (0, 0), "Sub": (None, 0), "Mul": (1, 1), "Div": (None, 1)}


@dataclass(frozen=True, slots=True)
class Known:
    """The elements of a scalar (``rank`` 0) or vector (``rank`` 1); None is an unknown element."""

    items: tuple[Dim, ...]
    rank: int

    @property
    def static(self) -> tuple[int, ...] | None:
        """The elements if all are numbers."""
        sizes = tuple(i for i in self.items if isinstance(i, int))
        return sizes if len(sizes) == len(self.items) else None


@dataclass(slots=True)
class Contents:
    """Contents of a graph's values, nodes visited in order; a subgraph reads the outer graph's.

    >>> Contents().of(ir.Value(name="unknown")) is None
    True
    """

    known: dict[ir.Value, Known | None] = field(default_factory=dict)

    def of(self, value: ir.Value | None) -> Known | None:
        """What is known of ``value``; None if nothing."""
        if value is None:
            return None
        if value not in self.known:
            array = constant(value, LIMIT)
            fits = array is not None and array.ndim <= 1 and array.dtype.kind in "iub"
            self.known[value] = (
                Known(tuple(int(i) for i in array.ravel()), array.ndim)
                if fits and array is not None
                else None
            )
        return self.known[value]

    def visit(self, node: ir.Node) -> None:
        """Follow ``node`` if it is shape arithmetic."""
        if node.domain == "" and len(node.outputs) == 1:
            result = self._follow(node)
            if result is not None and len(result.items) <= LIMIT:
                self.known[node.outputs[0]] = result

    def _follow(self, node: ir.Node) -> Known | None:
        op = node.op_type
        if op == "Shape":
            return _shape(node)
        if op == "ConstantOfShape":
            return _filled(node, self.of(node.inputs[0]))
        inputs = [self.of(v) for v in node.inputs]
        if not inputs or inputs[0] is None:
            return None
        first = inputs[0]
        if op in ("Identity", "Cast"):
            integral = node.outputs[0].dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
            to_bool = (
                node.outputs[0].dtype == ir.DataType.BOOL
                and node.inputs[0] is not None
                and (node.inputs[0].dtype != ir.DataType.BOOL)
            )
            return first if integral and not to_bool else None
        if any(k is None and v is not None for k, v in zip(inputs, node.inputs, strict=True)):
            return None
        known = [k for k in inputs if k is not None]
        match op:
            case "Gather":
                return _gather(first, known[1]) if node.attributes.get_int("axis", 0) in (0, -1) else None
            case "Slice":
                return _slice(known)
            case "Concat":
                return (
                    Known(tuple(i for k in known for i in k.items), 1) if all(k.rank for k in known) else None
                )
            case "Unsqueeze":
                return (
                    Known(first.items, 1)
                    if first.rank == 0 and len(known) == 2 and len(known[1].items) == 1
                    else None
                )
            case "Squeeze":
                return Known(first.items, 0) if first.rank == 1 and len(first.items) == 1 else None
            case "Reshape":
                rank = len(known[1].items)
                return Known(first.items, rank) if rank <= 1 and (rank or len(first.items) == 1) else None
            case "ReduceProd" if len(known) == 1 and (sizes := first.static) is not None:
                return Known((math.prod(sizes),), node.attributes.get_int("keepdims", 1))
            case "Where":
                return _where(*known)
        return _elementwise(op, *known) if op in _ARITHMETIC and len(known) == 2 else None


def _shape(node: ir.Node) -> Known | None:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(x.shape))
    return Known(tuple(dim_of(d) for d in x.shape)[start:end], 1)


def _filled(node: ir.Node, shape: Known | None) -> Known | None:
    sizes = shape.static if shape is not None else None
    if sizes is None or len(sizes) > 1 or math.prod(sizes) > LIMIT:
        return None
    fill = node.attributes["value"].as_tensor().numpy().ravel() if "value" in node.attributes else np.zeros(1)
    return Known((int(fill[0]),) * math.prod(sizes), len(sizes)) if fill.dtype.kind in "iub" else None


def _gather(data: Known, indices: Known) -> Known | None:
    chosen = indices.static
    size = len(data.items)
    if chosen is None or data.rank != 1 or not all(-size <= i < size for i in chosen):
        return None
    return Known(tuple(data.items[i] for i in chosen), indices.rank)


def _slice(known: list[Known]) -> Known | None:
    bounds = [k.static for k in known[1:]]
    if known[0].rank != 1 or any(b is None or len(b) != 1 for b in bounds):
        return None
    start, end, _axis, step = [b[0] for b in bounds if b] + [0, 1][len(bounds) - 2 :]
    return Known(known[0].items[start:end:step], 1) if step > 0 else None


def _where(condition: Known, a: Known, b: Known) -> Known | None:
    flags = condition.static
    size = max(len(k.items) for k in (condition, a, b))
    if flags is None or any(len(k.items) not in (1, size) for k in (condition, a, b)):
        return None
    wide = [k.items * size if len(k.items) == 1 else k.items for k in (condition, a, b)]
    return Known(
        tuple(x if c else y for c, x, y in zip(*wide, strict=True)), max(condition.rank, a.rank, b.rank)
    )


def _elementwise(op: str, a: Known, b: Known) -> Known | None:
    size = max(len(a.items), len(b.items))
    if len(a.items) not in (1, size) or len(b.items) not in (1, size):
        return None
    pairs = zip(*(k.items * size if len(k.items) == 1 else k.items for k in (a, b)), strict=True)
    return Known(tuple(_apply(op, x, y) for x, y in pairs), max(a.rank, b.rank))


def _product(x: Dim, y: Dim) -> Dim:
    """A number times a symbol, spelled as exporters do: ``4*batch``."""
    number, symbol = (x, y) if isinstance(x, int) else (y, x)
    if isinstance(number, int) and number > 1 and isinstance(symbol, str) and symbol.isidentifier():
        return f"{number}*{symbol}"
    return None


def _apply(op: str, x: Dim, y: Dim) -> Dim:
    if isinstance(x, int) and isinstance(y, int):
        return None if op == "Div" and y == 0 else _ARITHMETIC[op](x, y)
    left, right = _NEUTRAL.get(op, (None, None))
    if right is not None and y == right:
        return x
    if left is not None and x == left:
        return y
    if op == "Mul":
        return _product(x, y)
    if (
        op == "Equal"
        and ((isinstance(x, int) and x < 0) or (isinstance(y, int) and y < 0))
        and None not in (x, y)
    ):
        return 0  # a symbol is a size, never negative
    return None
