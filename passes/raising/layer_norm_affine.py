"""LayerNormalization as tf.keras writes it: x * (rsqrt * gamma) + (beta - mean * (rsqrt * gamma))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .layer_norm import centred
from .match import RaisingPass, Region, operands, rank, require_rank, size
from .norms import STASHED, mean_square, parameter, radicand_of, spans


@dataclass(frozen=True)
class RaiseLayerNormAffine(RaisingPass):
    """Raise tf.keras's rsqrt form of layer normalization to LayerNormalization."""

    name: ClassVar[str] = "raise-layer-norm-affine"
    opset: ClassVar[int] = 17
    anchors: ClassVar[frozenset[str]] = frozenset({"Add"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match the two products that share rsqrt * gamma."""
        for left, right in operands(node):
            region = Region(node)
            found = _match(left, right, region)
            if found is None:
                continue
            x, gamma, beta, axis, epsilon = found
            dims = [d for i in range(axis, 0) if (d := size(x, i)) is not None]
            if x.dtype not in STASHED:
                decline(f"computes in {x.dtype}, the operator in float32")
            if len(dims) != -axis or not spans(gamma, x, axis) or not spans(beta, x, axis):
                decline("gamma or beta is not a constant of the normalized dimensions")
            region.close(node.outputs[0])
            require_rank(x, node.outputs[0])
            inputs = [x, parameter(gamma, dims, at), parameter(beta, dims, at)]
            new = at.op("LayerNormalization", *inputs, axis=axis, epsilon=epsilon, stash_type=1)
            at.replace(node.outputs[0], new)
            return f"LayerNormalization of {x.name}"
        return skip()


def _match(
    left: ir.Value, right: ir.Value, region: Region
) -> tuple[ir.Value, ir.Value, ir.Value, int, float] | None:
    product, shift = region.find(left, "Mul"), region.find(right, "Sub")
    offset = region.find(shift.inputs[1], "Mul") if shift is not None else None
    if product is None or shift is None or offset is None or shift.inputs[0] is None:
        return None
    for x, factor in operands(product):
        mean = next((a for a, b in operands(offset) if b is factor), None)
        scale = region.find(factor, "Mul")
        if mean is None or scale is None:
            continue
        for inverse, gamma in operands(scale):
            radicand = radicand_of(inverse, region, inverse=True)
            found = mean_square(radicand, region) if radicand is not None else None
            if found is None:
                continue
            difference, axis, epsilon = found
            if centred(difference, axis, region) is not x or _mean_of(difference) is not mean:
                continue
            return x, gamma, shift.inputs[0], axis, epsilon
    return None


def _mean_of(difference: ir.Value) -> ir.Value | None:
    sub = difference.producer()
    return sub.inputs[1] if sub is not None and rank(difference) is not None else None
