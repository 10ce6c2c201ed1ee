"""Products with a transposed weight that something else reads as it is, such as tied embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.constants import is_constant
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip

DTYPES = {
    "cpu": (ir.DataType.FLOAT, ir.DataType.DOUBLE),
    "cuda": (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
}
"""dtypes of the FusedMatMul kernel, by device."""


@dataclass(frozen=True)
class ReadTransposed(RewritePass):
    """Let the product read the weight transposed instead of transposing it when the session loads.

    ONNX Runtime folds the Transpose into a second copy: for SmolLM2's head (49,152 x 576) loading takes
    twice the time and 300 MB more at its peak. At 128 rows both run equally fast.
    """

    name: ClassVar[str] = "read-transposed"
    anchors: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Swap one MatMul for FusedMatMul with ``transB``."""
        x, transposed = node.inputs[:2]
        turn = None if transposed is None else transposed.producer()
        if node.domain != "" or x is None or turn is None or turn.op_type != "Transpose" or turn.domain != "":
            skip()
        weight = turn.inputs[0]
        if weight is None or not is_constant(weight) or weight.shape is None or len(weight.shape) != 2:
            skip()
        if tuple(turn.attributes.get_ints("perm", (1, 0))) != (1, 0):
            skip()
        if x.shape is None or len(x.shape) < 2:
            decline("the other operand is not known to be a matrix")
        if x.dtype not in DTYPES[context.target.device]:
            decline(f"FusedMatMul has no {context.target.device} kernel for {x.dtype}")
        product = at.op("FusedMatMul", x, weight, domain="com.microsoft", transB=1)
        at.replace(node.outputs[0], product)
        return f"{weight.name} is read transposed"
