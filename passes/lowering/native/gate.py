"""Gated layers: one half of a layer's outputs, activated, times the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.constants import constant, constant_tensor
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from .activation import activated
from .layer import Layer
from .weights import cut, is_quantized, rows_between

Part = tuple[ir.Value, ir.Value | None]


@dataclass(frozen=True)
class NativeGate(RewritePass):
    """Join the two projections of a gated MLP, or the halves of a packed one, into one gated Linear."""

    name: ClassVar[str] = "native-gate"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset({"Mul"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Join what meets in one Mul."""
        a, b = node.inputs[:2]
        if node.domain != "" or a is None or b is None or a is b:
            skip()
        text = _siblings(node, a, b, at) or _halves(node, a, b, at) or _halves(node, b, a, at)
        return text or skip()


def _siblings(node: ir.Node, a: ir.Value, b: ir.Value, at: Rewriter) -> str:
    """Two layers of one input; "" if they are none."""
    first, second = Layer.alone(a), Layer.alone(b)
    if first is None or second is None:
        return ""
    gate, up = (second, first) if second.activation else (first, second)
    if gate.x is not up.x:
        decline("gate and up read different activations")
    if up.activation:
        decline("both factors are activated")
    if any(len(each.parts) > 1 or each.residual is not None or each.norm for each in (gate, up)):
        decline("one of the factors is more than one projection")
    if gate.rows != up.rows:
        decline("gate and up have different widths")
    parts = (gate.parts[0], up.parts[0])
    if len({is_quantized(weight) for weight, _ in parts}) > 1:
        decline("one of the weights is quantized, the other is not")
    return _replace(node, gate, parts, at)


def _halves(node: ir.Node, value: ir.Value, plain: ir.Value, at: Rewriter) -> str:
    """The halves of one layer that was split, ``value`` an activated one; "" if they are none."""
    split, found = plain.producer(), activated(value.producer())
    if split is None or (split.domain, split.op_type) != ("", "Split") or len(split.outputs) != 2:
        return ""
    layer = Layer.alone(split.inputs[0])
    if found is None or found.x.producer() is not split or found.x is plain or layer is None:
        return ""
    users = {user for output in split.outputs for user in output.consumers()}
    if users - {*found.nodes, node} or len(value.uses()) > 1 or value.is_graph_output():
        decline("a half of the layer is read elsewhere too")
    if layer.activation or layer.gated or layer.residual is not None or len(layer.parts) > 1:
        decline("the layer that is split does more than to multiply")
    half = layer.width // 2
    rank = 0 if plain.shape is None else len(plain.shape)
    sizes = constant(split.inputs[1]) if len(split.inputs) > 1 else None
    last = split.attributes.get_int("axis", 0) in (-1, rank - 1)
    if not last or layer.width % 2 or (sizes is not None and sizes.tolist() != [half, half]):
        decline("the layer is not split in halves of its last axis")
    weight, bias = layer.parts[0]
    parts: list[Part] = []
    for index in (split.outputs.index(found.x), split.outputs.index(plain)):
        rows = index * half, (index + 1) * half
        held = constant_tensor(bias)
        piece = None if held is None or bias is None else at.const(cut(held, *rows), f"{bias.name}_{index}")
        parts.append((rows_between(weight, *rows, at), piece))
    return _replace(node, replace(layer, activation=found.activation), tuple(parts), at)


def _replace(node: ir.Node, layer: Layer, parts: tuple[Part, ...], at: Rewriter) -> str:
    made = replace(layer, parts=parts, gated=True)
    at.replace(node.outputs[0], made.emit(at))
    return f"{made.width} gated outputs"
