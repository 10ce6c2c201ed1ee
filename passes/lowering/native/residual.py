"""Residual additions behind linear layers as part of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from ..views import same_dims
from .layer import Layer


@dataclass(frozen=True)
class NativeResidual(RewritePass):
    """Let linear layers add the residual of their result's shape.

    Where attention and MLP stand side by side, ``x + attention + mlp`` is one chain of two layers.
    """

    name: ClassVar[str] = "native-residual"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Take one Add into the Linear before it."""
        if node.domain != "" or None in node.inputs:
            skip()
        pairs = [(a, b) for a, b in (node.inputs, node.inputs[::-1]) if a is not None and b is not None]
        found = [(layer, b) for a, b in reversed(pairs) if (layer := Layer.alone(a)) is not None]
        if not found:
            if any(Layer.of(a.producer()) is not None for a, _ in pairs):
                decline("the layer's result is read elsewhere too")
            skip()
        total = node.outputs[0]
        for layer, other in found:
            if not _same(other, total) or layer.x.shape is None:
                decline("the addends are not known to have the same shape")
            if layer.residual is None:
                at.replace(total, replace(layer, residual=other).emit(at))
                return f"adds {other.name}"
            inner = Layer.alone(layer.residual)
            if inner is not None and inner.residual is None:
                lower = replace(inner, residual=other).emit(at)
                at.replace(total, replace(layer, residual=lower).emit(at))
                return f"adds {other.name}, in a chain of two"
        return decline("the layer has a residual already")


def _same(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and b.shape is not None and same_dims(a.shape, b.shape)
