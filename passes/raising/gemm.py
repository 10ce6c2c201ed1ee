"""Linear layers in one form: MatMul and Add, at the rank of their input.

Gemm stays only where it is two-dimensional already and its weight transposed (transB, as torch's Linear):
that is what backends multiply fastest, and unfolding it would copy the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .match import RaisingPass, Region, made_by, only_user, rank


@dataclass(frozen=True)
class RaiseLinear(RaisingPass):
    """Raise Gemm, with the Reshapes to two dimensions and back around it, to MatMul and Add."""

    name: ClassVar[str] = "raise-linear"
    anchors: ClassVar[frozenset[str]] = frozenset({"Gemm"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Lift the product to the rank it had before it was flattened."""
        numbers = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
        if node.attributes.get_int("transA", 0) or numbers != [1.0, 1.0]:
            decline("alpha, beta or transA is not the default")
        region = Region(node)
        x, out = _lifted(node, region)
        turned = bool(node.attributes.get_int("transB", 0))
        if x is node.inputs[0] and turned:
            skip()
        region.close(out)
        last = out.producer()
        assert last is not None
        at = Rewriter(last)
        weight = node.inputs[1]
        if turned and weight is not None:
            weight = at.op("Transpose", weight, perm=[1, 0])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        product = at.op("MatMul", x, weight)
        if bias is not None:
            product.type = out.type
            product = at.op("Add", product, bias)
        at.replace(out, product)
        return f"MatMul of {x.name if x is not None else ''}" + (" and Add" if bias is not None else "")


def _lifted(node: ir.Node, region: Region) -> tuple[ir.Value | None, ir.Value]:
    """Input and output of the product before and after the Reshapes around it, if those fit together."""
    flat, out = node.inputs[0], node.outputs[0]
    before = made_by(flat, "Reshape", "Flatten")
    after = only_user(out)
    x = before.inputs[0] if before is not None else None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if (
        before is None
        or x is None
        or x.shape is None
        or after is None
        or (bias is not None and rank(bias) != 1)
    ):
        return flat, out
    wide = after.outputs[0]
    if after.op_type != "Reshape" or after.domain != "" or wide.shape is None or flat is None:
        return flat, out
    leading, kept = list(x.shape[:-1]), list(wide.shape[:-1])
    named = all(isinstance(d, int) or d.value is not None for d in leading)
    same_width = flat.shape is not None and flat.shape[-1] == x.shape[-1] and isinstance(x.shape[-1], int)
    if not named or leading != kept or not same_width or wide.shape[-1] != (out.shape or [None])[-1]:
        return flat, out
    region.nodes[after] = None
    return x, wide
