"""Residual additions behind linear layers as part of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from ..views import same_dims, shape_constant
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
            rows = [(view, b) for a, b in pairs if (view := _rows(a)) is not None]
            if rows:
                return _flat(node, *rows[0], at)
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


def _rows(value: ir.Value) -> ir.Node | None:
    """The Reshape that cuts the rows of a layer, all in one axis, back into ``value``."""
    node = value.producer()
    if node is None or (node.domain, node.op_type) != ("", "Reshape") or value.is_graph_output():
        return None
    layer = Layer.alone(node.inputs[0]) if len(value.uses()) == 1 else None
    if layer is None or layer.residual is not None or layer.x.shape is None or len(layer.x.shape) != 2:
        return None
    return node if value.shape is not None and value.shape[-1] == layer.width else None


def _flat(node: ir.Node, view: ir.Node, other: ir.Value, at: Rewriter) -> str:
    """Add ``other`` to the rows of a layer before they are cut."""
    total, layer = node.outputs[0], Layer.alone(view.inputs[0])
    if layer is None or not _same(other, total) or not _same(view.outputs[0], total):
        decline("the addends are not known to have the same shape")
    rows = at.op("Reshape", other, shape_constant(at, [-1, layer.width]))
    rows.type, rows.shape = (
        other.type,
        None if layer.x.shape is None else ir.Shape([layer.x.shape[0], layer.width]),
    )
    attributes = {name: attribute.value for name, attribute in view.attributes.items()}
    made = replace(layer, residual=rows).emit(at)
    at.replace(total, at.op("Reshape", made, view.inputs[1], **attributes))
    return f"adds {other.name}, row by row"


def _same(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and b.shape is not None and same_dims(a.shape, b.shape)
