"""A mean over all spatial dimensions is GlobalAveragePool, which backends have in their own image layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, skip
from .match import RaisingPass, rank, reduced_axes


@dataclass(frozen=True)
class RaiseGlobalPool(RaisingPass):
    """Raise the mean over dimensions 2 and 3 of an image to GlobalAveragePool."""

    name: ClassVar[str] = "raise-global-pool"
    anchors: ClassVar[frozenset[str]] = frozenset({"ReduceMean"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Pool, then drop the dimensions where the mean did."""
        x, out = node.inputs[0], node.outputs[0]
        if x is None or rank(x) != 4 or reduced_axes(node) != (2, 3) or x.dtype != ir.DataType.FLOAT:
            skip()
        pooled = at.op("GlobalAveragePool", x)
        if node.attributes.get_int("keepdims", 1) != 1:
            pooled.type = out.type
            pooled = at.op("Squeeze", pooled, at.const(np.array([2, 3], np.int64), "spatial_axes"))
        at.replace(out, pooled)
        return f"GlobalAveragePool of {x.name}"
