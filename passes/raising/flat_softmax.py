"""Softmax of opset 12 and older flattened its input, which on the last axis changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .match import RaisingPass, Region, made_by, only_user, rank


@dataclass(frozen=True)
class RaiseFlatSoftmax(RaisingPass):
    """Raise Reshape(Softmax(Flatten(x))) on the last axis to Softmax(x), the form since opset 13."""

    name: ClassVar[str] = "raise-flat-softmax"
    opset: ClassVar[int] = 13
    anchors: ClassVar[frozenset[str]] = frozenset({"Softmax", "LogSoftmax"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match around the Softmax."""
        region = Region(node)
        flatten = region.find(node.inputs[0], "Flatten")
        x = flatten.inputs[0] if flatten is not None else None
        back = only_user(node.outputs[0])
        count = rank(x)
        if flatten is None or x is None or back is None or back.op_type != "Reshape" or count is None:
            skip()
        if flatten.attributes.get_int("axis", 1) not in (-1, count - 1):
            decline("more than the last axis is normalized")
        shape = made_by(back.inputs[1], "Shape")
        if (shape is None or shape.inputs[0] is not x or shape.attributes) and list(
            back.outputs[0].shape or (None,)
        ) != list(x.shape or ()):
            decline("the result does not get the shape of the input back")
        region.nodes[back] = None
        region.close(back.outputs[0])
        at = Rewriter(back)
        at.replace(back.outputs[0], at.op(node.op_type, x, axis=-1))
        return f"{node.op_type} of {x.name} on its last axis"
