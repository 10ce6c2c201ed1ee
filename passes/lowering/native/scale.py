"""A number that query or key is multiplied with, as part of attention's own scale."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ....compiler.ir.constants import scalar
from ....compiler.ir.rewrite import Rewriter

VIEWS = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze"})
"""What may stand between the product and attention."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """``product = x * factor``, which nothing but one attention reads."""

    product: ir.Value
    x: ir.Value
    factor: float

    def drop(self, at: Rewriter) -> None:
        """Let the views behind the product read ``x``."""
        at.replace(self.product, self.x)


def scaling(value: ir.Value) -> Scaling | None:
    """The scaling of query or key, views behind it and a rotary embedding looked through."""
    while len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None or node.domain != "" or node.inputs[0] is None:
            return None
        if node.op_type in VIEWS or node.op_type == "RotaryEmbedding":
            value = node.inputs[0]
            continue
        return _product(node, value)
    return None


def _product(node: ir.Node, value: ir.Value) -> Scaling | None:
    if node.op_type not in ("Mul", "Div"):
        return None
    pairs = [node.inputs] if node.op_type == "Div" else [node.inputs, node.inputs[::-1]]
    for x, other in pairs:
        number = scalar(other)
        if not number or x is None or x.shape is None or value.shape is None:
            continue
        if len(x.shape) == len(value.shape):
            return Scaling(value, x, 1 / number if node.op_type == "Div" else number)
    return None
