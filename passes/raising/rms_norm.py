"""RMSNormalization from its decomposition, as Llama, Gemma (1 + weight, folded before) and T5 write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, skip
from .layer_norm import emit_norm
from .match import RaisingPass
from .norms import match_normalized


@dataclass(frozen=True)
class RaiseRmsNorm(RaisingPass):
    """Raise x / sqrt(mean(x²) + epsilon) * weight to RMSNormalization."""

    name: ClassVar[str] = "raise-rms-norm"
    opset: ClassVar[int] = 23
    anchors: ClassVar[frozenset[str]] = frozenset({"Div", "Mul"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match from the division up to x, then down to the weight."""
        found = match_normalized(node)
        if found is None:
            skip()
        return emit_norm("RMSNormalization", node, found.numerator, found.axis, found.epsilon, found.region)
