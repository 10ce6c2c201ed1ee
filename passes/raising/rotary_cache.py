"""The half of a rotary table: cos and sin hold every angle twice, RotaryEmbedding reads it once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, is_constant, scalar
from ...compiler.ir.rewrite import Rewriter
from .match import Region, made_by, rank

_TABLE_LIMIT = 1 << 24
_MAPS = ("Cos", "Sin", "Cast", "Neg", "Identity")
_WITH_NUMBER = ("Mul", "Div", "Add", "Sub")
_OTHER_AXES = ("Unsqueeze", "Slice", "Gather")


def halve(value: ir.Value, interleaved: bool, at: Rewriter | None, depth: int = 16) -> ir.Value | None:
    """The part of ``value`` that its last axis repeats: in two halves, or ``interleaved`` pairwise.

    Follows elementwise operators, views and gathers of other axes up to the repetition, or to a constant
    table whose contents repeat; None if there is neither. Builds through ``at``; without it, only looks.
    """
    if depth == 0:
        return None
    if is_constant(value):
        return _halved_constant(value, interleaved, at)
    source = _repeated(value, interleaved)
    if source is not None:
        return source
    node = made_by(value, *_MAPS, *_WITH_NUMBER, *_OTHER_AXES)
    if node is None or not _keeps_last_axis(node):
        return None
    index = 1 if node.op_type in ("Mul", "Add") and scalar(node.inputs[0]) is not None else 0
    inner = node.inputs[index]
    half = halve(inner, interleaved, at, depth - 1) if inner is not None else None
    if half is None or at is None:
        return half
    inputs = [half if i == index else v for i, v in enumerate(node.inputs)]
    built = at.op(node.op_type, *inputs, **{name: a.value for name, a in node.attributes.items()})
    built.type = value.type
    if value.shape is not None:
        built.shape = ir.Shape([*value.shape[:-1], _half_size(value)])
    return built


def _half_size(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape is not None else None
    return last // 2 if isinstance(last, int) else None


def _keeps_last_axis(node: ir.Node) -> bool:
    x = node.inputs[0]
    count = rank(x)
    if node.op_type in _MAPS:
        return True
    if node.op_type in _WITH_NUMBER:
        numbers = [scalar(v) is not None for v in node.inputs]
        return numbers[1] or (numbers[0] and node.op_type in ("Mul", "Add"))
    if count is None:
        return False
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) % count != count - 1
    if node.op_type == "Unsqueeze":
        axes = constant(node.inputs[1])
        return axes is not None and all(a % (count + axes.size) < count + axes.size - 1 for a in axes)
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 else None
    return axes is not None and all(a % count != count - 1 for a in axes)


def _halved_constant(value: ir.Value, interleaved: bool, at: Rewriter | None) -> ir.Value | None:
    table = constant(value, _TABLE_LIMIT)
    if table is None or table.ndim == 0 or table.shape[-1] % 2:
        return None
    half = table.shape[-1] // 2
    parts = (table[..., ::2], table[..., 1::2]) if interleaved else (table[..., :half], table[..., half:])
    if not np.array_equal(*parts):
        return None
    return value if at is None else at.const(np.ascontiguousarray(parts[0]), f"{value.name}_half")


def _repeated(value: ir.Value, interleaved: bool) -> ir.Value | None:
    """The value that a Concat doubles, or that Unsqueeze, Expand and Reshape repeat pairwise."""
    if not interleaved:
        concat = made_by(value, "Concat")
        doubled = concat is not None and len(concat.inputs) == 2 and concat.inputs[0] is concat.inputs[1]
        if (
            concat is None
            or not doubled
            or concat.attributes.get_int("axis", 0) not in (-1, (rank(value) or 0) - 1)
        ):
            return None
        return concat.inputs[0]
    region = Region()
    reshape = region.find(value, "Reshape")
    pairs = region.find(reshape.inputs[0], "Expand", "Tile", "Concat") if reshape is not None else None
    column = pairs.inputs[0] if pairs is not None else None
    stack = region.find(column, "Unsqueeze", "Reshape")
    source = stack.inputs[0] if stack is not None else None
    if pairs is None or column is None or source is None or source.shape is None:
        return None
    if pairs.op_type == "Concat" and (len(pairs.inputs) != 2 or pairs.inputs[1] is not column):
        return None
    dims = list(source.shape)
    last = dims[-1]
    shapes = [None if v.shape is None else list(v.shape) for v in (column, pairs.outputs[0], value)]
    if not isinstance(last, int):
        return None
    return source if shapes == [[*dims, 1], [*dims, 2], [*dims[:-1], 2 * last]] else None
