"""Attention heads as a view: [batch, heads, sequence, size] found as flat [batch, sequence, heads * size]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....compiler.ir.constants import constant
from ....compiler.ir.rewrite import Rewriter
from ....compiler.reference import Array
from ..views import SWAP, heads_of, is_swap, same_dims, shape_constant


@dataclass(frozen=True, slots=True)
class Flat:
    """How to make the flat form: ``build(at)`` gives it with ``saved`` transposes less (-1: one more)."""

    build: Callable[[Rewriter], ir.Value]
    saved: int


def flat(value: ir.Value) -> Flat | None:
    """The flat form of ``value``, None if heads or their size are not static.

    Transposes, reshapes, rotary embeddings and normalisations over the head size are looked through.
    """
    dims = heads_of(value)
    if dims is None:
        return None
    heads, size = dims
    node = value.producer()
    alone = len(value.uses()) == 1 and not value.is_graph_output()
    if node is not None and node.domain == "":
        if is_swap(node):
            source = _input(node)
            return Flat(lambda at: merge_heads(at, source, heads * size), int(alone))
        inner = flat(_input(node)) if node.op_type == "RotaryEmbedding" and alone else None
        if inner is not None and inner.saved > 0:
            return Flat(lambda at: _rotary(at, node, inner.build(at), heads), inner.saved)
        if node.op_type in ("RMSNormalization", "LayerNormalization") and alone and len(node.outputs) == 1:
            below = _input(node).producer()
            last = node.attributes.get_int("axis", -1) in (-1, 3)
            if last and below is not None and is_swap(below) and len(below.outputs[0].uses()) == 1:
                source = _input(below)
                return Flat(lambda at: merge_heads(at, _normal(at, node, source), heads * size), 1)
    return Flat(lambda at: merge_heads(at, _swap(at, value), heads * size), -1)


def merge_heads(at: Rewriter, value: ir.Value, hidden: int) -> ir.Value:
    """[batch, sequence, heads, size] as [batch, sequence, hidden]; a Reshape that just split it is undone."""
    node, shape = value.producer(), value.shape
    if node is not None and node.op_type == "Reshape" and node.domain == "" and shape is not None:
        whole = _input(node)
        if whole.shape is not None and same_dims(whole.shape, [*shape[:2], hidden]):
            return whole
    merged = at.op("Reshape", value, shape_constant(at, [0, 0, hidden]))
    merged.type = value.type
    if shape is not None:
        merged.shape = ir.Shape([*shape[:2], hidden])
    return merged


def merge_back(at: Rewriter, split: ir.Value, flat_output: ir.Value, sizes: tuple[int, int]) -> None:
    """Replace ``split`` [batch, sequence, heads, size] by views of ``flat_output``."""
    for usage in split.uses():
        reshape = usage.node
        if reshape.op_type != "Reshape" or reshape.domain != "" or usage.idx != 0:
            continue
        merged = reshape.outputs[0]
        if _same_shape(merged, flat_output):
            at.replace(merged, flat_output)
        elif _keeps_elements(reshape):
            allow = reshape.attributes.get_int("allowzero", 0)
            at.replace(merged, at.op("Reshape", flat_output, reshape.inputs[1], allowzero=allow or None))
    if split.uses() or split.is_graph_output():
        at.replace(split, at.op("Reshape", flat_output, shape_constant(at, [0, 0, *sizes])))


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return a.shape is not None and b.shape is not None and same_dims(a.shape, b.shape)


def _keeps_elements(reshape: ir.Node) -> bool:
    """Whether the target shape copies no dimension, so that any view of the same elements may be reshaped."""
    target = constant(reshape.inputs[1])
    return target is not None and 0 not in target.tolist()


def constant_like(at: Rewriter, name: str, array: Array, like: ir.Value) -> ir.Value:
    """``array`` as an initializer of the dtype of ``like``; one of this name and contents per graph."""
    assert like.dtype is not None and isinstance(at.graph, ir.Graph)
    array = array.astype(like.dtype.numpy())
    known = at.graph.initializers.get(name)
    if known is not None and known.const_value is not None:
        held = known.const_value.numpy()
        if held.dtype == array.dtype and np.array_equal(held, array):
            return known
    return at.const(array, name)


def number(at: Rewriter, name: str, value: float, like: ir.Value) -> ir.Value:
    """A scalar of the dtype of ``like``, one of this name per graph."""
    return constant_like(at, name, np.array(value), like)


def _swap(at: Rewriter, value: ir.Value) -> ir.Value:
    swapped = at.op("Transpose", value, perm=SWAP)
    swapped.type = value.type
    if value.shape is not None:
        swapped.shape = ir.Shape([value.shape[axis] for axis in SWAP])
    return swapped


def _rotary(at: Rewriter, node: ir.Node, value: ir.Value, heads: int) -> ir.Value:
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    turned = at.op("RotaryEmbedding", value, *node.inputs[1:], **{**attributes, "num_heads": heads})
    turned.type, turned.shape = value.type, value.shape
    return turned


def _normal(at: Rewriter, node: ir.Node, value: ir.Value) -> ir.Value:
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    normal = at.op(node.op_type, value, *node.inputs[1:], **{**attributes, "axis": -1})
    normal.type, normal.shape = value.type, value.shape
    return normal


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None, f"{node.op_type} without its first input"
    return value
