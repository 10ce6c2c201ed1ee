"""Norms in front of linear layers as part of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.constants import is_constant
from ....compiler.ir.provenance import add_passes
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from .layer import Layer

KINDS = {"RMSNormalization": "rms", "SimplifiedLayerNormalization": "rms", "LayerNormalization": "layer"}


@dataclass(frozen=True)
class NativeNorm(RewritePass):
    """Let linear layers begin with the RMS or layer norm in front of them."""

    name: ClassVar[str] = "native-norm"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset(KINDS)

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Take one norm into every Linear that reads it."""
        x, *scales = node.inputs
        output = node.outputs[0]
        readers = output.consumers()
        layers = [Layer.of(reader) for reader in readers]
        if node.domain != "" or x is None or not any(layers):
            skip()
        if x.dtype != ir.DataType.FLOAT:
            decline(f"it is computed in {x.dtype}")
        if output.is_graph_output() or not all(layers):
            decline("its result is read by others than linear layers")
        if any(usage.idx != 0 for usage in output.uses()):
            decline("its result is the residual of a layer")
        if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
            decline("its mean or deviation is read too")
        if x.shape is None or node.attributes.get_int("axis", -1) not in (-1, len(x.shape) - 1):
            decline("it normalizes more than the last axis")
        if any(not is_constant(v) or list(v.shape or ()) != [x.shape[-1]] for v in scales if v is not None):
            decline("its scale or bias is not one constant per column")
        if any(layer is not None and layer.norm for layer in layers):
            decline("a layer has a norm already")
        kind, epsilon = KINDS[node.op_type], node.attributes.get_float("epsilon", 1e-5)
        scale, bias = (*scales, None, None)[:2]
        for reader in dict.fromkeys(readers):
            layer, there = Layer.of(reader), Rewriter(reader)
            assert layer is not None
            normed = replace(layer, x=x, norm=kind, epsilon=epsilon, norm_scale=scale, norm_bias=bias)
            there.replace(reader.outputs[0], normed.emit(there))
            for made in there.made:
                add_passes(made, [self.name])
        return f"{kind} norm of {len(readers)} layer{'s' if len(readers) > 1 else ''}"
