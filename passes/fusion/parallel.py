"""Projections that read one input side by side: query, key and value; gate and up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ...compiler.dialect import MIAOTUI
from ...compiler.ir.constants import constant_tensor
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Program
from ..base import PassContext, PassResult, RewritePass, decline, skip
from .linear import Linear, fuse, linear

VIEWS = frozenset(
    {
        "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity",
        "RotaryEmbedding", "RMSNormalization", "LayerNormalization",
    }
)  # fmt: skip
"""What stands between a projection and the attention that reads it; the data is input 0."""

ACTIVATIONS = frozenset(
    {"Gelu", "Relu", "Sigmoid", "Tanh", "Swish", "HardSwish", "Elu", "LeakyRelu", "Softplus"}
)


@dataclass(frozen=True)
class ParallelFusion(RewritePass):
    """Base of passes that join projections. ``on``: devices where one wide product beats several.

    On CUDA it saves kernel launches and fills the GPU. ONNX Runtime's CPU kernels run each product at
    the machine's peak already, and splitting the result copies it: 1–4 % slower at 128 tokens.
    """

    on: tuple[str, ...] = ("cuda",)

    def fuse(self, layers: list[Linear], context: PassContext) -> str:
        """Join ``layers`` if the target is one of ``on``."""
        if context.target.device not in self.on:
            decline(
                f"on {context.target.device} splitting one wide product costs more than it saves "
                f"({self.name}{{on={'+'.join((*self.on, context.target.device))}}} joins it all the same)"
            )
        return fuse(layers)


@dataclass(frozen=True)
class FuseQkv(ParallelFusion):
    """Compute query, key and value (or cross-attention's key and value) in one product.

    Attention over a cache takes the product whole on the CPU, too: with nothing to split, SmolLM2's tokens
    are decoded 4 % faster. Then all entries join them, to share the joined weights.
    """

    name: ClassVar[str] = "fuse-qkv"
    anchors: ClassVar[frozenset[str]] = frozenset({"Attention", "CachedAttention"})

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Try every anchor; on the CPU, too, if the program keeps a cache."""
        step = self if program.decoding is None else replace(self, on=(*self.on, "cpu"))
        return super(FuseQkv, step).run(program, context)

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Join the projections of one Attention."""
        if node.domain != ("" if node.op_type == "Attention" else MIAOTUI):
            skip()
        layers = [_projection(value) for value in node.inputs[:3]]
        found = [layer for layer in layers if layer is not None]
        if not found:
            skip()
        if len(found) < 3:
            decline("query, key or value is no linear projection")
        if len({layer.product for layer in found}) < 3:
            skip()
        query, key, value = found
        if key.x is not value.x:
            decline("key and value read different inputs")
        return self.fuse(found if query.x is key.x else [key, value], context)


@dataclass(frozen=True)
class FuseGateUp(ParallelFusion):
    """Compute a gated MLP's gate and up projections in one product."""

    name: ClassVar[str] = "fuse-gate-up"
    anchors: ClassVar[frozenset[str]] = frozenset({"Mul"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Join the two projections that meet in one Mul."""
        if node.domain != "" or None in node.inputs:
            skip()
        gate, up = (_activated(value) for value in node.inputs)
        if gate is None or up is None or gate.product is up.product:
            skip()
        if gate.x is not up.x:
            decline("gate and up read different inputs")
        return self.fuse([gate, up], context)


def _projection(value: ir.Value | None) -> Linear | None:
    while True:
        node = None if value is None else value.producer()
        found = linear(value)
        if found is not None or node is None or node.domain != "":
            return found
        if node.op_type in ("Mul", "Div"):
            value = _scaled(node)
        elif node.op_type in VIEWS:
            value = node.inputs[0]
        else:
            return None


def _scaled(node: ir.Node) -> ir.Value | None:
    """The varying operand of a product with a constant."""
    varying = [value for value in node.inputs if constant_tensor(value) is None]
    return varying[0] if len(varying) == 1 else None


def _activated(value: ir.Value | None) -> Linear | None:
    """The linear layer behind an activation (also ``x * Sigmoid(x)``), or right behind ``value``."""
    node = None if value is None else value.producer()
    found = linear(value)
    if found is not None or node is None or node.domain != "":
        return found
    if node.op_type in ACTIVATIONS:
        return linear(node.inputs[0])
    if node.op_type == "Mul":
        for x, other in (node.inputs, node.inputs[::-1]):
            maker = None if other is None else other.producer()
            if maker is not None and maker.op_type in ACTIVATIONS and maker.inputs[0] is x:
                return linear(x)
    return None
