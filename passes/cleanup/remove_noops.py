"""Operators that return their input: Identity, Dropout, and others where dtype and shape prove it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant
from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, RewritePass, skip
from .forward import forward, same_shape

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile"})
"""Row-major views and repetitions: with an unchanged shape they return their input."""

NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1, "Pow": 1, "And": True, "Or": False}
COMMUTES = frozenset({"Add", "Mul", "And", "Or"})
VARIADIC = frozenset({"Concat", "Sum", "Max", "Min", "Mean"})


@dataclass(frozen=True)
class RemoveNoops(RewritePass):
    """Remove operators that return their input unchanged."""

    name: ClassVar[str] = "remove-noops"
    anchors: ClassVar[frozenset[str]] = (
        VIEWS
        | VARIADIC
        | NEUTRAL.keys()
        | {"Identity", "Dropout", "Cast", "CastLike", "Transpose", "Slice", "Pad"}
    )

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Forward the input that the node returns."""
        if node.domain != "" or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            skip()
        source = _returned(node)
        if source is None:
            skip()
        forward(node.outputs[0], source)
        return f"{node.op_type} returned its input"


def _returned(node: ir.Node) -> ir.Value | None:
    x, out = node.inputs[0] if node.inputs else None, node.outputs[0]
    if x is None:
        return None
    match node.op_type:
        case "Identity":
            return x
        case "Dropout":
            training = node.inputs[2] if len(node.inputs) > 2 else None
            flag = None if training is None else constant(training)
            trains = training is not None and (flag is None or bool(flag))
            old_training = "is_test" in node.attributes and not node.attributes.get_int("is_test", 0)
            return None if trains or old_training else x
        case "Cast" | "CastLike":
            return x if x.dtype is not None and x.dtype == out.dtype else None
        case "Transpose":
            perm = node.attributes.get_ints("perm", ())
            return x if perm and list(perm) == list(range(len(perm))) else None
        case "Slice":
            steps = node.inputs[4] if len(node.inputs) > 4 else None
            forwards = steps is None or ((array := constant(steps)) is not None and bool((array == 1).all()))
            return x if forwards and same_shape(x, out) else None
        case "Pad":
            pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
            return x if pads is not None and not pads.any() else None
    if node.op_type in VIEWS:
        return x if same_shape(x, out) else None
    if node.op_type in VARIADIC:
        return x if len(node.inputs) == 1 else None
    return _neutral_operand(node)


def _neutral_operand(node: ir.Node) -> ir.Value | None:
    a, b = node.inputs
    for x, other in ((a, b), (b, a)):
        if x is None or other is None or (x is b and node.op_type not in COMMUTES):
            continue
        array = constant(other, limit=4096)
        if (
            array is not None
            and x.dtype == node.outputs[0].dtype
            and array.dtype.kind in "fiub"
            and array.size
            and bool(np.all(array == NEUTRAL[node.op_type]))
            and same_shape(x, node.outputs[0])
        ):
            return x
    return None
