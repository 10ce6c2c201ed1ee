"""Gelu from its erf form and its tanh approximation, in any order of products."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .match import RaisingPass, Region, require_rank
from .polynomial import is_polynomial, leaves, polynomial, results

_HALF = {(1, 0): 0.5, (1, 1): 0.5}
_ERF = {(1, 0): math.sqrt(0.5)}
_TANH = {(1, 0): math.sqrt(2 / math.pi), (3, 0): 0.044715 * math.sqrt(2 / math.pi)}


@dataclass(frozen=True)
class RaiseGelu(RaisingPass):
    """Raise x/2 * (1 + erf(x/√2)), or its tanh approximation, to Gelu."""

    name: ClassVar[str] = "raise-gelu"
    opset: ClassVar[int] = 20
    anchors: ClassVar[frozenset[str]] = frozenset({"Erf", "Tanh"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Find x above the function, then the product with x below it."""
        expected = _ERF if node.op_type == "Erf" else _TANH
        e = node.outputs[0]
        for x in dict.fromkeys(leaves(node.inputs[0])):
            region = Region(node)
            if not is_polynomial(polynomial(node.inputs[0], x, None, region), expected):
                continue
            for out in results(e):
                inside = region.copy()
                if is_polynomial(polynomial(out, x, e, inside), _HALF):
                    return _emit(node, x, out, inside)
            decline(f"the argument is Gelu's, but {e.name!r} is not used once, as x/2 * (1 + it)")
        if node.op_type == "Erf":
            decline("the argument is not x/√2")
        return skip()


def _emit(node: ir.Node, x: ir.Value, out: ir.Value, region: Region) -> str:
    region.close(out)
    require_rank(x, out)
    last = out.producer()
    assert last is not None
    at = Rewriter(last)
    approximate = "tanh" if node.op_type == "Tanh" else "none"
    at.replace(out, at.op("Gelu", x, approximate=approximate))
    return f"Gelu of {x.name}, approximate={approximate}"
