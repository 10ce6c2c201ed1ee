"""Activations behind a linear layer as part of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.constants import scalar
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from .layer import Layer

_QUICK = 1.702
_BY_NAME = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class Activated:
    """``activation(x)`` as it stands in a graph; ``nodes``: all that compute it."""

    x: ir.Value
    activation: str
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class NativeActivation(RewritePass):
    """Let linear layers end with the activation behind them."""

    name: ClassVar[str] = "native-activation"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset({*_BY_NAME, "Gelu", "Swish", "Mul"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Take one activation into the Linear before it."""
        found = activated(node)
        layer = None if found is None else Layer.of(found.x.producer())
        if found is None or layer is None:
            skip()
        if found.x.is_graph_output() or any(user not in found.nodes for user in found.x.consumers()):
            if node.op_type != "Mul" and any(user.op_type == "Mul" for user in found.x.consumers()):
                skip()  # the Sigmoid of a Swish
            decline("the layer's result is read without the activation too")
        if layer.activation or layer.gated or layer.residual is not None:
            decline("the layer has an activation or residual already")
        at.replace(node.outputs[0], replace(layer, activation=found.activation).emit(at))
        return found.activation


def activated(node: ir.Node | None) -> Activated | None:
    """The activation of which ``node`` is the last node, None if it is none that Linear knows."""
    if node is None or node.domain != "" or not node.inputs or node.inputs[0] is None:
        return None
    x = node.inputs[0]
    if node.op_type in _BY_NAME:
        return Activated(x, _BY_NAME[node.op_type], (node,))
    if node.op_type == "Gelu":
        tanh = node.attributes.get_string("approximate", "none") == "tanh"
        return Activated(x, "gelu_tanh" if tanh else "gelu", (node,))
    if node.op_type == "Swish":
        name = _swish(node.attributes.get_float("alpha", 1.0))
        return Activated(x, name, (node,)) if name else None
    return _product(node) if node.op_type == "Mul" else None


def _swish(factor: float) -> str:
    """What ``x * sigmoid(factor * x)`` is called, or ""."""
    return "silu" if factor == 1 else "quick_gelu" if abs(factor - _QUICK) < 1e-5 else ""


def _product(node: ir.Node) -> Activated | None:
    """``x * Sigmoid(x)`` or ``x * Sigmoid(1.702 * x)``."""
    for x, other in (node.inputs, node.inputs[::-1]):
        gate = None if other is None else other.producer()
        if x is None or other is None or gate is None or (gate.domain, gate.op_type) != ("", "Sigmoid"):
            continue
        if other.is_graph_output() or len(other.uses()) > 1:
            continue
        if gate.inputs[0] is x:
            return Activated(x, "silu", (gate, node))
        scaling = gate.inputs[0].producer() if gate.inputs[0] is not None else None
        if scaling is None or (scaling.domain, scaling.op_type) != ("", "Mul") or x not in scaling.inputs:
            continue
        factor = next((scalar(v) for v in scaling.inputs if v is not x), None)
        name = _swish(float(factor)) if factor is not None else ""
        inner = scaling.outputs[0]
        if name and len(inner.uses()) == 1 and not inner.is_graph_output():
            return Activated(x, name, (scaling, gate, node))
    return None
