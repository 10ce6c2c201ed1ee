"""Chains of views become one: Reshapes (Squeeze, Unsqueeze), Casts or Transposes in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Dim, dim_of
from ..base import PassContext, RewritePass, decline, skip
from .forward import forward, known_equal, may_forward, same_shape

RESHAPES = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_FLOAT_ORDER = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_SIGNED_ORDER = (ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64)


@dataclass(frozen=True)
class MergeViews(RewritePass):
    """Merge consecutive Reshapes, Casts or Transposes, and drop those that undo each other."""

    name: ClassVar[str] = "merge-views"
    anchors: ClassVar[frozenset[str]] = RESHAPES | {"Cast", "Transpose"}

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Let ``node`` read what its producer reads."""
        x = node.inputs[0] if node.inputs else None
        inner = x.producer() if x is not None else None
        if (
            x is None
            or inner is None
            or inner.domain != ""
            or node.domain != ""
            or inner.inputs[:1] == (None,)
        ):
            skip()
        if node.op_type == "Cast":
            return _merge_casts(node, inner, at)
        if node.op_type == "Transpose":
            return _merge_transposes(node, inner, at)
        return _merge_reshapes(node, inner, at)


def _merge_casts(node: ir.Node, inner: ir.Node, at: Rewriter) -> str:
    source = inner.inputs[0] if inner.op_type == "Cast" else None
    if source is None or not _widens(source.dtype, inner.outputs[0].dtype):
        skip()
    if source.dtype == node.outputs[0].dtype and not may_forward(node.outputs[0], source):
        forward(node.outputs[0], source)
        return "casts there and back"
    attributes = {name: a.value for name, a in node.attributes.items()}
    at.replace(node.outputs[0], at.op("Cast", source, **attributes))
    return "casts merged"


def _widens(before: ir.DataType | None, after: ir.DataType | None) -> bool:
    """Whether every value of ``before`` survives a Cast to ``after`` exactly."""
    if before == ir.DataType.BOOL:
        return after in _SIGNED_ORDER or after in _FLOAT_ORDER
    for order in (_FLOAT_ORDER, _SIGNED_ORDER):
        if before in order and after in order:
            return order.index(before) <= order.index(after)
    return before == ir.DataType.BFLOAT16 and after in _FLOAT_ORDER[1:]


def _merge_transposes(node: ir.Node, inner: ir.Node, at: Rewriter) -> str:
    outer_perm, inner_perm = permutation(node), permutation(inner)
    source = inner.inputs[0]
    if outer_perm is None or inner_perm is None or source is None:
        skip()
    perm = [inner_perm[axis] for axis in outer_perm]
    if perm == sorted(perm):
        forward(node.outputs[0], source)
        return "transposes cancel"
    at.replace(node.outputs[0], at.op("Transpose", source, perm=perm))
    return "transposes merged"


def permutation(node: ir.Node) -> tuple[int, ...] | None:
    """The permutation of a Transpose node, None for another node or an unknown rank."""
    if node.op_type != "Transpose" or node.domain != "":
        return None
    perm = node.attributes.get_ints("perm", ())
    x = node.inputs[0]
    if perm or x is None or x.shape is None:
        return tuple(perm) or None
    return tuple(reversed(range(len(x.shape))))


def _merge_reshapes(node: ir.Node, inner: ir.Node, at: Rewriter) -> str:
    source, out = inner.inputs[0], node.outputs[0]
    if inner.op_type == "Transpose":
        return _unbatch(node, inner, at)
    if inner.op_type not in RESHAPES or source is None:
        skip()
    if same_shape(source, out):
        forward(out, source)
        return "reshapes back to the original shape"
    sizes = _sizes(node, out) if node.op_type == "Reshape" else _sizes_from_shape(out)
    if sizes is None:
        skip()
    middle, before = inner.outputs[0].shape, source.shape
    for index, size in enumerate(sizes):
        if size != 0 or node.op_type != "Reshape":
            continue
        dim: Dim = None if middle is None else dim_of(middle[index])
        if before is not None and index < len(before) and dim is not None and dim == dim_of(before[index]):
            continue
        if not isinstance(dim, int) or dim == 0:
            decline("a copied dimension is not known to be the same before the inner reshape")
        sizes[index] = dim
    at.replace(out, at.op("Reshape", source, at.const(np.asarray(sizes, np.int64), f"{node.name}_shape")))
    return f"{inner.op_type} merged into {node.op_type}"


def _unbatch(node: ir.Node, transpose: ir.Node, at: Rewriter) -> str:
    """Reshape(Transpose(Reshape(x))) that only merges the leading axes meanwhile is one Transpose of x."""
    merge = transpose.inputs[0].producer() if transpose.inputs[0] is not None else None
    x = merge.inputs[0] if merge is not None and merge.op_type in RESHAPES and merge.domain == "" else None
    middle, out = transpose.inputs[0], node.outputs[0]
    if x is None or middle is None or permutation(transpose) != (0, 2, 1):
        skip()
    if (
        x.shape is None
        or out.shape is None
        or middle.shape is None
        or len(x.shape) != 4
        or len(out.shape) != 4
    ):
        skip()
    kept = all(known_equal(middle.shape[a - 1], x.shape[a]) for a in (2, 3))
    swapped = all(known_equal(out.shape[a], x.shape[b]) for a, b in enumerate((0, 1, 3, 2)))
    if not kept or not swapped:
        skip()
    at.replace(out, at.op("Transpose", x, perm=[0, 1, 3, 2]))
    return "a transpose of merged axes is one of the whole"


def _sizes(node: ir.Node, out: ir.Value) -> list[int] | None:
    array = constant(node.inputs[1]) if len(node.inputs) == 2 else None
    if array is None or (node.attributes.get_int("allowzero", 0) == 1 and bool((array == 0).any())):
        return None
    return [int(size) for size in array]


def _sizes_from_shape(out: ir.Value) -> list[int] | None:
    """A static shape as a Reshape's target; empty tensors are left alone, since 0 would mean copy."""
    if out.shape is None or not out.shape.is_static() or 0 in out.shape.numpy():
        return None
    return list(out.shape.numpy())
