"""Residual additions and the norm after them in one kernel, for CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.constants import constant_tensor
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from ..views import same_dims

KERNELS = {
    "LayerNormalization": "SkipLayerNormalization",
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
    "SimplifiedLayerNormalization": "SkipSimplifiedLayerNormalization",
}
DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class FuseSkipNorm(RewritePass):
    """Merge a residual Add, and the bias before it, into the LayerNormalization or RMSNormalization after it.

    For CUDA, where every pass over memory is a kernel launch: ONNX Runtime does so itself for
    LayerNormalization, not for RMSNormalization. On CPU the merged kernels are slower (see ``LOWER_CPU``).
    """

    name: ClassVar[str] = "fuse-skip-norm"
    anchors: ClassVar[frozenset[str]] = frozenset(KERNELS)

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Merge one norm with the Add in front of it."""
        total = node.inputs[0]
        add = None if total is None else total.producer()
        if node.domain != "" or total is None or add is None or add.op_type != "Add" or add.domain != "":
            skip()
        if add.graph is not node.graph:
            skip()
        a, b = add.inputs
        scales = [value for value in node.inputs[1:] if value is not None]
        _require(node, total, a, b, scales)
        assert a is not None and b is not None
        a, b, bias = _without_bias(a, b)

        at = Rewriter(add)  # other readers of the sum may stand between the Add and the norm
        read = total.is_graph_output() or len(total.uses()) > 1
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        optional = [None] if len(scales) == 1 and node.op_type == "LayerNormalization" else []
        inputs = [a, b, *scales, *([*optional, bias] if bias is not None else [])]
        kernel = KERNELS[node.op_type]
        results = at.ops(kernel, *inputs, outputs=4 if read else 1, domain="com.microsoft", epsilon=epsilon)
        for unused in results[1:3]:
            unused.name = ""
        at.replace(node.outputs[0], results[0])
        if read:
            at.replace(total, results[3])
        return f"{add.name} merged into {kernel}" + (" with its bias" if bias is not None else "")


def _require(
    node: ir.Node, total: ir.Value, a: ir.Value | None, b: ir.Value | None, scales: Sequence[ir.Value]
) -> None:
    if a is None or b is None or a.shape is None or b.shape is None or len(a.shape) not in (2, 3):
        decline("the addends' shapes are not known to be [sequence, hidden] or [batch, sequence, hidden]")
    if not same_dims(a.shape, b.shape):
        decline("the addends are not known to have the same shape")
    if node.attributes.get_int("axis", -1) not in (-1, len(a.shape) - 1):
        decline("it normalises more than the last axis")
    if len(node.outputs) > 1 and any(
        output.uses() or output.is_graph_output() for output in node.outputs[1:]
    ):
        decline("its mean or deviation is read too")
    if total.dtype not in DTYPES:
        decline(f"there is no kernel for {total.dtype}")
    hidden = a.shape[-1]
    for scale in scales:
        if constant_tensor(scale) is None or scale.dtype != total.dtype or scale.shape is None:
            decline("its scale or bias is not a constant of the addends' dtype")
        if list(scale.shape) != [hidden]:
            decline("its scale or bias is not one value per channel")


def _without_bias(a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """The addends, the bias that one of them ends with taken out."""
    for value, other in ((a, b), (b, a)):
        inner = value.producer()
        if inner is None or inner.op_type != "Add" or inner.domain != "" or len(value.uses()) > 1:
            continue
        if value.is_graph_output() or inner.graph is not value.graph:
            continue
        for product, bias in (inner.inputs, inner.inputs[::-1]):
            if product is None or bias is None or constant_tensor(bias) is None or product.shape is None:
                continue
            same = value.shape is not None and same_dims(product.shape, value.shape)
            if same and bias.shape is not None and list(bias.shape) == [product.shape[-1]]:
                return product, other, bias
    return a, b, None
