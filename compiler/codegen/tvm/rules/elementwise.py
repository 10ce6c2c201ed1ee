"""Operators that compute each element from the elements at its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from ..lowering import Lowering, Rule, dtype_of
from . import functions as f
from .broadcast import read

Scalar = Callable[..., Any]


HALF = ("float16", "bfloat16")
"""What is computed in float32."""


def mapped(b: Lowering, function: Scalar, inputs: list[Any], name: str, *, widen: bool = False) -> Any:
    """``function`` of the elements of all inputs, which broadcast to one shape.

    ``widen``: halves arrive as float32, and what it gives then is rounded to a half.
    """
    halves = [str(x.ty.dtype) for x in inputs if x.ty.dtype in HALF] if widen else []

    def wide(x: Any) -> Any:
        return b.cast(x, "float32") if halves and x.ty.dtype in HALF else x

    def element(values: list[Any]) -> Any:
        found = function(*map(wide, values))
        kind = getattr(getattr(found, "ty", None), "dtype", None)  # a comparison has none yet
        return found.astype(halves[0]) if halves and kind == "float32" else found

    def elementwise(*tensors: Any) -> Any:
        shape = b.broadcast([t.shape for t in tensors])
        return b.te.compute(shape, lambda *i: element([read(b, t, i, shape) for t in tensors]), name=name)

    return b.compute(elementwise, *inputs, name=name)


def _plain(function: Callable[..., Any]) -> Rule:
    """A rule of a function ``function(b, *elements)``."""

    def lower(b: Lowering, node: ir.Node) -> Any:
        return mapped(b, lambda *x: function(b, *x), b.values(node), node.op_type.lower(), widen=True)

    return Rule(lower)


def _with_node(function: Callable[..., Any]) -> Rule:
    """A rule of a function ``function(b, node, *elements)`` that reads attributes."""

    def lower(b: Lowering, node: ir.Node) -> Any:
        return mapped(b, lambda *x: function(b, node, *x), b.values(node), node.op_type.lower(), widen=True)

    return Rule(lower)


def _folded(function: Callable[[Lowering, Any, Any], Any], mean: bool = False) -> Rule:
    """A rule of an operator of any number of inputs."""

    def lower(b: Lowering, node: ir.Node) -> Any:
        def chain(first: Any, *others: Any) -> Any:
            for other in others:
                first = function(b, first, other)
            return first / b.const(1 + len(others), first.ty.dtype) if mean else first

        return mapped(b, chain, b.values(node), node.op_type.lower(), widen=True)

    return Rule(lower)


def _cast(b: Lowering, node: ir.Node) -> Any:
    dtype = dtype_of(ir.DataType(node.attributes.get_int("to", 1)))
    if node.op_type == "CastLike":
        dtype = dtype_of(node.inputs[1].dtype if node.inputs[1] is not None else None)
    source = b.value(node.inputs[0])
    return source if source.ty.dtype == dtype else mapped(b, lambda x: f.cast(b, x, dtype), [source], "cast")


def _identity(b: Lowering, node: ir.Node) -> Any:
    return b.value(node.inputs[0])


def _clip(b: Lowering, node: ir.Node) -> Any:
    low, high = (node.inputs[i] if i < len(node.inputs) else None for i in (1, 2))
    inputs = [b.value(v) for v in (node.inputs[0], low, high) if v is not None]

    def clip(x: Any, *bounds: Any) -> Any:
        left = list(bounds)
        if low is not None:
            x = b.tirx.max(x, left.pop(0))
        return b.tirx.min(x, left.pop(0)) if high is not None else x

    return mapped(b, clip, inputs, "clip", widen=True)


def _prelu(b: Lowering, x: Any, slope: Any) -> Any:
    return b.tirx.Select(x < b.const(0, x.ty.dtype), x * slope, x)


RULES: dict[str, Rule] = {
    **{name: _plain(function) for name, function in f.PLAIN.items()},
    **{name: _with_node(function) for name, function in f.WITH_ATTRIBUTES.items()},
    **{name: _folded(function) for name, function in f.FOLDED.items()},
    "Mean": _folded(lambda b, x, y: x + y, mean=True),
    "PRelu": _plain(_prelu),
    "Cast": Rule(_cast),
    "CastLike": Rule(_cast),
    "Identity": Rule(_identity),
    "Clip": Rule(_clip),
}
