"""What stands between the projections and attention: rotary embedding and RMS norm of query and key heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....compiler.ir.constants import constant, is_constant
from ....compiler.ir.rewrite import Rewriter
from ..views import SWAP, is_swap, same_dims

RMS_NORMS = ("RMSNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True, slots=True)
class Turn:
    """One rotation of query and key; ``query``, ``key``: what is rotated; ``positions`` index the tables."""

    query: ir.Value
    key: ir.Value
    cos: ir.Value
    sin: ir.Value
    positions: ir.Value | None
    style: str

    def angles(self, at: Rewriter) -> tuple[ir.Value, ir.Value]:
        """cos and sin: [batch or 1, tokens, pairs]."""
        if self.positions is None:
            return self.cos, self.sin
        return _rows(self.cos, self.positions, at), _rows(self.sin, self.positions, at)


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """An RMS norm of every head by ``scale`` [size]; ``build(at)``: what it normalizes, heads split."""

    scale: ir.Value
    epsilon: float
    build: Callable[[Rewriter], ir.Value]


def turn(query: ir.Value, key: ir.Value) -> tuple[Turn | None, str]:
    """The rotation that query and key share; else None and why they are not rotated inside (or "")."""
    nodes = [value.producer() for value in (query, key)]
    turned = [n for n in nodes if n is not None and (n.domain, n.op_type) == ("", "RotaryEmbedding")]
    if len(turned) < 2:
        return None, "only one of query and key is rotated" if turned else ""
    first, second = turned
    (x, cos, sin, *rest), (y, other_cos, other_sin, *other_rest) = first.inputs, second.inputs
    positions = next(iter(rest), None)
    same = ((cos, other_cos), (sin, other_sin), (positions, next(iter(other_rest), None)))
    if not all(_equal(a, b) for a, b in same):
        return None, "query and key are rotated by different angles"
    styles = [n.attributes.get_int("interleaved", 0) for n in turned]
    if styles[0] != styles[1]:
        return None, "query and key are rotated in different styles"
    if None in (x, y, cos, sin):
        return None, ""
    assert x is not None and y is not None and cos is not None and sin is not None
    if x.shape is None or y.shape is None or len(x.shape) != 4 or len(y.shape) != 4:
        return None, "query or key is rotated before its heads are split"
    if not same_dims([x.shape[2], x.shape[3]], [y.shape[2], y.shape[3]]):
        return None, "query and key are not known to have the same number of tokens"
    if cos.shape is None or len(cos.shape) != (3 if positions is None else 2):
        return None, "the rank of its angles is not known"
    pairs, size = cos.shape[-1], x.shape[3]
    if not isinstance(pairs, int) or not isinstance(size, int) or 2 * pairs > size:
        return None, "the number of rotated pairs is not static"
    for node in turned:
        if (node.attributes.get_int("rotary_embedding_dim", 0) or size) != 2 * pairs:
            return None, "its angles are wider than what they rotate"
    return Turn(x, y, cos, sin, positions, "interleaved" if styles[0] else "half"), ""


def head_norm(value: ir.Value) -> HeadNorm | None:
    """The RMS norm over the last axis that made ``value`` [batch, heads, tokens, size], or None."""
    node = value.producer()
    swapped = node is not None and node.domain == "" and is_swap(node)
    if swapped and node is not None:
        inner = node.inputs[0]
        node = None if inner is None else inner.producer()
    if node is None or node.domain != "" or node.op_type not in RMS_NORMS:
        return None
    x, scale = node.inputs[:2]
    if x is None or scale is None or x.shape is None or len(x.shape) != 4 or not is_constant(scale):
        return None
    if scale.shape is None or list(scale.shape) != [x.shape[3]] or scale.dtype != x.dtype:
        return None
    if node.attributes.get_int("axis", -1) not in (-1, 3):
        return None

    def build(at: Rewriter) -> ir.Value:
        if not swapped:
            return x
        made = at.op("Transpose", x, perm=SWAP)
        made.type, made.shape = value.type, value.shape
        return made

    return HeadNorm(scale, node.attributes.get_float("epsilon", 1e-5), build)


def _equal(a: ir.Value | None, b: ir.Value | None) -> bool:
    if a is b:
        return True
    first, second = constant(a), constant(b)
    return first is not None and second is not None and np.array_equal(first, second)


def _rows(table: ir.Value, positions: ir.Value, at: Rewriter) -> ir.Value:
    """The table's rows at the positions; what an earlier layer looked up is used again."""
    for user in positions.consumers():
        known = (user.domain, user.op_type, user.attributes.get_int("axis", 0)) == ("", "Gather", 0)
        if known and user.inputs[0] is table and user.graph is at.graph:
            return user.outputs[0]
    made = at.op("Gather", table, positions, axis=0)
    made.type = table.type
    if positions.shape is not None and table.shape is not None:
        made.shape = ir.Shape([*positions.shape, table.shape[1]])
    return made
