"""Attention masks as what is added to the scores: [batch or 1, heads or 1, tokens or 1, keys or 1]."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ....compiler.ir.constants import scalar
from ....compiler.ir.rewrite import Rewriter
from ...base import decline
from ..views import same_dims, shape_constant


def require_covers(mask: ir.Value, keys: int | ir.SymbolicDim) -> None:
    """Require a mask the kernel can read. Raises: NoMatch."""
    if mask.shape is None or not 1 <= len(mask.shape) <= 4:
        decline("its mask has an unknown rank")
    if mask.dtype not in (ir.DataType.BOOL, ir.DataType.FLOAT):
        decline(f"its mask is of {mask.dtype}")
    if mask.shape[-1] != 1 and not same_dims([mask.shape[-1]], [keys]):
        decline(f"its mask is not known to cover all keys ({mask.shape[-1]} of {keys})")


def additive(mask: ir.Value, at: Rewriter) -> ir.Value:
    """The mask with four axes, of floats: 0 where a boolean one is true, else minus infinity.

    What an earlier layer made of the same mask is used again; what was repeated stays broadcast.
    """
    mask = _narrow(mask)
    if mask.dtype == ir.DataType.BOOL:
        mask = _where(mask, at)
    missing = 4 - len(mask.shape or ())
    if not missing:
        return mask
    made = at.op("Unsqueeze", mask, shape_constant(at, list(range(missing))))
    made.type, made.shape = mask.type, ir.Shape([*[1] * missing, *(mask.shape or ())])
    return made


def _narrow(mask: ir.Value) -> ir.Value:
    """``mask`` before it was repeated along axes, if it had as many."""
    node = mask.producer()
    source = node.inputs[0] if node is not None and (node.domain, node.op_type) == ("", "Expand") else None
    if source is None or source.shape is None or mask.shape is None or len(source.shape) != len(mask.shape):
        return mask
    pairs = zip(source.shape, mask.shape, strict=True)
    return source if all(a == 1 or same_dims([a], [b]) for a, b in pairs) else mask


def _where(mask: ir.Value, at: Rewriter) -> ir.Value:
    for user in mask.consumers():
        known = (user.domain, user.op_type) == ("", "Where") and user.graph is at.graph
        if known and [scalar(v) for v in user.inputs[1:]] == [0, -np.inf]:
            return user.outputs[0]
    shown, hidden = (at.const(np.array(v, np.float32), n) for v, n in ((0, "shown"), (-np.inf, "hidden")))
    made = at.op("Where", mask, shown, hidden)
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), mask.shape
    return made
