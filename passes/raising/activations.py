"""Sigmoid, HardSigmoid and HardSwish from arithmetic; SiLU stays ``Mul(x, Sigmoid(x))``, as torch has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.constants import scalar
from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, skip
from .match import RaisingPass, Region, close_to, operand_and_number, require_rank
from .polynomial import Polynomial, is_polynomial, leaves, polynomial, results


@dataclass(frozen=True)
class RaiseSigmoid(RaisingPass):
    """Raise 1 / (1 + exp(-x)) to Sigmoid."""

    name: ClassVar[str] = "raise-sigmoid"
    anchors: ClassVar[frozenset[str]] = frozenset({"Div", "Reciprocal"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match from the division; x / (1 + exp(-x)) becomes x * Sigmoid(x)."""
        region = Region(node)
        add = region.find(node.inputs[-1], "Add")
        split = operand_and_number(add) if add is not None else None
        exp = region.find(split[0], "Exp") if split is not None and split[1] == 1 else None
        negative = region.find(exp.inputs[0], "Neg") if exp is not None else None
        x = negative.inputs[0] if negative is not None else None
        if x is None or add is None:
            skip()
        region.close(node.outputs[0])
        require_rank(x, add.outputs[0])
        sigmoid = at.op("Sigmoid", x)
        numerator = node.inputs[0] if node.op_type == "Div" else None
        if numerator is None or scalar(numerator) == 1:
            at.replace(node.outputs[0], sigmoid)
        else:
            sigmoid.type, sigmoid.shape = x.type, x.shape
            at.replace(node.outputs[0], at.op("Mul", numerator, sigmoid))
        return f"Sigmoid of {x.name}"


@dataclass(frozen=True)
class RaiseHardSwish(RaisingPass):
    """Raise x * clip(x + 3, 0, 6) / 6 to HardSwish, and without the product to HardSigmoid."""

    name: ClassVar[str] = "raise-hard-swish"
    opset: ClassVar[int] = 14
    anchors: ClassVar[frozenset[str]] = frozenset({"Clip", "HardSigmoid"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match around the clipped value."""
        if node.op_type == "HardSigmoid":
            alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
            if not (close_to(alpha, 1 / 6) and close_to(beta, 0.5)) or node.inputs[0] is None:
                skip()
            return _emit(node, node.inputs[0], {(1, 1): 1.0}, {}, Region(node))
        low, high = (scalar(v) for v in (*node.inputs[1:3], None, None)[:2])
        if low != 0 or high != 6:
            skip()
        for x in dict.fromkeys(leaves(node.inputs[0])):
            region = Region(node)
            if is_polynomial(polynomial(node.inputs[0], x, None, region), {(1, 0): 1.0, (0, 0): 3.0}):
                return _emit(node, x, {(1, 1): 1 / 6}, {(0, 1): 1 / 6}, region)
        return skip()


def _emit(node: ir.Node, x: ir.Value, swish: Polynomial, gate: Polynomial, region: Region) -> str:
    e = node.outputs[0]
    candidates = list(results(e))
    for expected, op in ((swish, "HardSwish"), (gate, "HardSigmoid")):
        for out in candidates if expected else ():
            inside = region.copy()
            last = out.producer()
            if last is None or not is_polynomial(polynomial(out, x, e, inside), expected):
                continue
            inside.close(out)
            require_rank(x, out)
            at = Rewriter(last)
            gates = op == "HardSigmoid"
            at.replace(out, at.op(op, x, alpha=1 / 6 if gates else None, beta=0.5 if gates else None))
            return f"{op} of {x.name}"
    return skip()
