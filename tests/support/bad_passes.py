"""Passes that are wrong or slow on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from miaotui.compiler.ir.rewrite import Rewriter
from miaotui.passes.base import PassContext, RewritePass


@dataclass(frozen=True)
class BreakRelu(RewritePass):
    """Replaces Relu by Abs, which is wrong."""

    name: ClassVar[str] = "break-relu"
    anchors: ClassVar[frozenset[str]] = frozenset({"Relu"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Replace."""
        at.replace(node.outputs[0], at.op("Abs", node.inputs[0]))
        return "Abs"


@dataclass(frozen=True)
class SlowRelu(RewritePass):
    """Puts a detour of twenty large products by the identity behind every Relu: right, but slow."""

    name: ClassVar[str] = "slow-relu"
    anchors: ClassVar[frozenset[str]] = frozenset({"Relu"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Replace."""
        value = at.op("Relu", node.inputs[0])
        wide = np.zeros((64, 2048), np.float32)
        wide[:, :64] = np.eye(64)
        there, back = at.const(wide, "there"), at.const(np.ascontiguousarray(wide.T), "back")
        for _ in range(20):
            value = at.op("MatMul", at.op("MatMul", value, there), back)
        at.replace(node.outputs[0], value)
        return "a detour"
