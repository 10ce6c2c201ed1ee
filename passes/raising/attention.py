"""Attention from MatMul, scale, mask, soft cap, Softmax and MatMul, as exporters below opset 23 write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ..base import PassContext, decline, skip
from .match import RaisingPass, Region, made_by, rank, require_rank
from .scores import Scores, match_probabilities, match_scores


@dataclass(frozen=True)
class RaiseAttention(RaisingPass):
    """Raise softmax(softcap(q·kᵀ·scale) + mask)·v to Attention with inputs [batch, heads, sequence, size].

    The mask reaches the operator with full query and key dimensions, which ONNX Runtime requires; a fully
    masked row gives zeros there and NaN in a decomposition without guard.
    """

    name: ClassVar[str] = "raise-attention"
    opset: ClassVar[int] = 23
    anchors: ClassVar[frozenset[str]] = frozenset({"Softmax"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match from Softmax down to the values, then up to queries and keys."""
        region = Region(node)
        product = match_probabilities(node, region)
        scores = match_scores(node.inputs[0], region) if product is not None else None
        v = product.inputs[1] if product is not None else None
        if product is None or scores is None or v is None:
            skip()
        region.nodes[product] = None
        out = product.outputs[0]
        ranks = {rank(scores.q), rank(scores.keys), rank(v)}
        if ranks not in ({4}, {3}):
            decline(f"queries, keys and values have {sorted(map(str, ranks))} dimensions, not 4 or 3 each")
        region.close(out)
        if len({scores.q.dtype, scores.keys.dtype, v.dtype}) != 1:
            decline("queries, keys and values differ in dtype")
        if any(rank(m) is None for m in (*scores.biases, *(c for c, _, _ in scores.masks))):
            decline("the mask's rank is unknown")
        if any((rank(m) or 0) > 4 for m in (*scores.biases, *(c for c, _, _ in scores.masks))):
            decline("the mask has more than 4 dimensions")
        require_rank(v, out)
        _require_no_broadcast(scores, v)
        at = Rewriter(product)
        inputs = [scores.q, _untransposed(scores.keys, at), v]
        mask = _mask(scores, at)
        if ranks == {3}:
            axis = at.const(np.array([1], np.int64), "heads_axis")
            inputs = [at.op("Unsqueeze", x, axis) for x in inputs]
            if mask is not None and rank(mask) == 3:
                mask = _with(at.op("Unsqueeze", mask, axis), mask.dtype)
        mask = None if mask is None else _full(mask, scores, at)
        new = at.op(
            "Attention", *inputs, mask, scale=scores.scale, softcap=scores.softcap or None, is_causal=0
        )  # fmt: skip
        at.replace(out, new if ranks == {4} else at.op("Squeeze", _with(new, out.dtype), axis))
        return f"Attention of {scores.q.name}, scale {scores.scale:.6g}" + (
            f", soft cap {scores.softcap:g}" if scores.softcap else ""
        )


def _require_no_broadcast(scores: Scores, v: ir.Value) -> None:
    """Attention broadcasts masks and shared heads, MatMul and Add anything. Raises: NoMatch for the rest."""
    q, keys, values = scores.q.shape, scores.keys.shape, v.shape
    assert q is not None and keys is not None and values is not None
    if len({dim == 1 for dim in (q[0], keys[0], values[0])}) != 1:
        decline("queries, keys and values broadcast over the batch")
    if len(q) == 4 and (keys[1] != values[1] or keys[1] not in (1, q[1])):
        decline("queries, keys and values broadcast over heads")
    for mask in (*scores.biases, *(condition for condition, _, _ in scores.masks)):
        dims = list(mask.shape or ())
        target = [*q[:-1], keys[-1]][len(q) - len(dims) :] if len(dims) <= len(q) else []
        if len(dims) > len(q) or any(d != 1 and t == 1 for d, t in zip(dims, target, strict=True)):
            decline("the mask broadcasts the scores")


def _with(value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    value.type = None if dtype is None else ir.TensorType(dtype)
    return value


def _untransposed(keys: ir.Value, at: Rewriter) -> ir.Value:
    """``keys`` with its last two axes swapped, through the Transpose that made it where there is one."""
    count = rank(keys)
    assert count is not None
    swap = [*range(count - 2), count - 1, count - 2]
    node = made_by(keys, "Transpose")
    perm = node.attributes.get_ints("perm", ()) if node is not None else ()
    source = keys if node is None or not perm else node.inputs[0]
    perm = [perm[axis] for axis in swap] if source is not keys else swap
    assert source is not None
    return source if list(perm) == sorted(perm) else _with(at.op("Transpose", source, perm=perm), keys.dtype)


def _mask(scores: Scores, at: Rewriter) -> ir.Value | None:
    """One mask of all: the boolean itself if it is alone and fills with -inf, else a sum of biases."""
    dtype = scores.q.dtype
    assert dtype is not None
    if not scores.biases and len(scores.masks) == 1 and np.isneginf(scores.masks[0][1]):
        condition, _, inverted = scores.masks[0]
        return _like(at.op("Not", condition), condition) if inverted else condition
    total: ir.Value | None = None
    for bias in scores.biases:
        cast = bias if bias.dtype == dtype else _like(at.op("Cast", bias, to=int(dtype)), bias, dtype)
        total = cast if total is None else _sum(total, cast, at)
    for condition, fill, inverted in scores.masks:
        # A finite fill becomes the lowest number: added to scores, it still leaves fully masked rows uniform.
        low = fill if np.isneginf(fill) else _lowest(dtype)
        zero = at.const(np.zeros((), dtype.numpy()), "mask_zero")
        minimum = at.const(np.asarray(low, dtype.numpy()), "mask_fill")
        pair = (minimum, zero) if inverted else (zero, minimum)
        bias = _like(at.op("Where", condition, *pair), condition, dtype)
        total = bias if total is None else _sum(total, bias, at)
    return total


def _lowest(dtype: ir.DataType) -> float:
    """A fill that no score outweighs."""
    return {ir.DataType.FLOAT16: -65504.0, ir.DataType.DOUBLE: -1e300}.get(dtype, -3e38)


def _like(value: ir.Value, model: ir.Value, dtype: ir.DataType | None = None) -> ir.Value:
    kind = dtype or model.dtype
    value.type = None if kind is None else ir.TensorType(kind)
    value.shape = model.shape
    return value


def _sum(a: ir.Value, b: ir.Value, at: Rewriter) -> ir.Value:
    """a + b; its shape is inferred later, here only its rank matters."""
    total = _with(at.op("Add", a, b), a.dtype)
    total.shape = ir.Shape([None] * max(rank(a) or 0, rank(b) or 0))
    return total


def _full(mask: ir.Value, scores: Scores, at: Rewriter) -> ir.Value:
    """``mask`` with its last two dimensions expanded to query and key length, unless they are known to be."""
    q, keys = scores.q.shape, scores.keys.shape
    if mask.shape is not None and len(mask.shape) >= 2 and q is not None and keys is not None:
        wanted = (q[-2], keys[-1])
        if all(a == b and _named(a) for a, b in zip(mask.shape[-2:], wanted, strict=True)):
            return mask
    length = at.op("Shape", scores.q, start=-2, end=-1)
    total = at.op("Shape", scores.keys, start=-1)
    ends = [_int64(length), _int64(total)]
    return _with(at.op("Expand", mask, at.op("Concat", *ends, axis=0)), mask.dtype)


def _int64(value: ir.Value) -> ir.Value:
    value.type, value.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    return value


def _named(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) or dim.value is not None
