"""Attention's operands with split heads: how many and how large, views that split and join them."""

from __future__ import annotations

import onnx_ir as ir

from ....compiler.ir.rewrite import Rewriter
from ...base import decline
from ..views import SWAP, heads_of, shape_constant


def heads(node: ir.Node, value: ir.Value, kind: str) -> tuple[int, int]:
    """Heads and their size of an operand, split or flat; ``kind``: ``q`` or ``kv``.

    Raises: NoMatch if they are not static.
    """
    found = heads_of(value)
    if found is not None:
        return found
    count = node.attributes.get_int(f"{kind}_num_heads", 0)
    width = None if value.shape is None or len(value.shape) != 3 else value.shape[2]
    if not count or not isinstance(width, int):
        decline("number of heads or head size is not static")
    return count, width // count


def split(at: Rewriter, value: ir.Value, sizes: tuple[int, int]) -> ir.Value:
    """[batch, heads, tokens, size] of an operand that may be [batch, tokens, hidden]."""
    assert value.shape is not None
    if len(value.shape) == 4:
        return value
    batch, tokens, _ = value.shape
    cut = at.op("Reshape", value, shape_constant(at, [0, 0, *sizes]))
    cut.type, cut.shape = value.type, ir.Shape([batch, tokens, *sizes])
    return swap(at, cut)


def swap(at: Rewriter, value: ir.Value) -> ir.Value:
    """Axes 1 and 2 exchanged."""
    swapped = at.op("Transpose", value, perm=SWAP)
    swapped.type = value.type
    if value.shape is not None:
        swapped.shape = ir.Shape([value.shape[axis] for axis in SWAP])
    return swapped


def joined(at: Rewriter, value: ir.Value) -> ir.Value:
    """[batch, tokens, hidden] of [batch, heads, tokens, size]."""
    assert value.shape is not None
    batch, count, tokens, size = value.shape
    assert isinstance(count, int) and isinstance(size, int)
    whole = at.op("Reshape", swap(at, value), shape_constant(at, [0, 0, count * size]))
    whole.type, whole.shape = value.type, ir.Shape([batch, tokens, count * size])
    return whole
