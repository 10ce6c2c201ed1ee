"""Attention heads that were merged into the batch for three-dimensional products get their axis back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import scalar
from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .match import RaisingPass, made_by, rank


@dataclass(frozen=True)
class SplitMergedHeads(RaisingPass):
    """Move Reshapes of [batch·heads, m, n] to [batch, heads, m, n] above products, sums and scales."""

    name: ClassVar[str] = "split-merged-heads"
    anchors: ClassVar[frozenset[str]] = frozenset({"Reshape"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Reshape the operands instead of the result, until the Reshapes that merged the heads are met."""
        moved = 0
        pending = [node]
        while pending:
            reshape = pending.pop()
            inner = _movable(reshape)
            if inner is None:
                if not moved:
                    skip()
                continue
            pending.extend(_move(reshape, inner))
            moved += 1
        return f"moved above {moved} operators"


def _movable(reshape: ir.Node) -> ir.Node | None:
    """The operator that ``reshape`` may be moved above, None if there is none."""
    x, out = reshape.inputs[0], reshape.outputs[0]
    inner = made_by(x, "MatMul", "Add", "Mul", "Div")
    if inner is None or x is None or rank(x) != 3 or rank(out) != 4:
        return None
    if any(user is not reshape and user.op_type != "Shape" for user in x.consumers()):
        return None
    if x.is_graph_output() or x.shape is None or out.shape is None:
        return None
    if list(x.shape[1:]) != list(out.shape[2:]):
        return None
    if not isinstance(out.shape[1], int) or any(not isinstance(d, int) and d.value is None for d in x.shape):
        return None
    for operand in inner.inputs:
        if scalar(operand) is not None and inner.op_type != "MatMul":
            continue
        if (
            operand is None
            or operand.shape is None
            or len(operand.shape) != 3
            or operand.shape[0] != x.shape[0]
        ):
            decline_if_merged(operand, x)
            return None
    return inner


def decline_if_merged(operand: ir.Value | None, x: ir.Value) -> None:
    """Say why heads stay merged where the operands' first dimensions are not known to be the same."""
    if made_by(x, "MatMul") is not None and rank(operand) == 3:
        decline("an operand is not known to have the merged dimension of the result")


def _move(reshape: ir.Node, inner: ir.Node) -> list[ir.Node]:
    """Reshape ``inner``'s operands instead; the new Reshapes, which may move on."""
    at = Rewriter(reshape)
    out = reshape.outputs[0]
    assert out.shape is not None
    leading = list(out.shape[:2])
    head = at.const(np.array([-1, leading[1]], np.int64), "heads")
    operands: list[ir.Value | None] = []
    made: list[ir.Node] = []
    for operand in inner.inputs:
        if (
            operand is None
            or operand.shape is None
            or (scalar(operand) is not None and inner.op_type != "MatMul")
        ):
            operands.append(operand)
            continue
        rest = at.op("Shape", operand, start=1)
        rest.type, rest.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([2])
        target = at.op("Concat", head, rest, axis=0)
        target.type, target.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([4])
        split = at.op("Reshape", operand, target)
        split.type, split.shape = operand.type, ir.Shape([*leading, *operand.shape[1:]])
        operands.append(split)
        producer = split.producer()
        assert producer is not None
        made.append(producer)
    at.replace(out, at.op(inner.op_type, *operands))
    return made
