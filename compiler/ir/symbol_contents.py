"""The integers that operators compute from shapes, each a number, a symbol or None."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..program import Dim
from .symbol_sizes import Dims, quotient

if TYPE_CHECKING:
    from .symbols import Walk

LIMIT = 64
"""Elements up to which the integers in a value are followed."""


def _shape_contents(walk: Walk, node: ir.Node) -> Dims | None:
    dims = walk.dims(node.inputs[0])
    end = node.attributes.get("end")
    return None if dims is None else dims[node.attributes.get_int("start", 0) : end.as_int() if end else None]


def _same_contents(walk: Walk, node: ir.Node) -> Dims | None:
    return walk.read(node.inputs[0])


def _cast_contents(walk: Walk, node: ir.Node) -> Dims | None:
    source, target = (None if v is None else v.dtype for v in (node.inputs[0], node.outputs[0]))
    if source == target or target in (ir.DataType.INT64, ir.DataType.INT32):
        return walk.read(node.inputs[0])
    return None  # a float divides otherwise, and True is 1


def _gathered_contents(walk: Walk, node: ir.Node) -> Dims | None:
    data, indices = walk.read(node.inputs[0]), walk.read(node.inputs[1])
    if data is None or indices is None:
        return None
    return [data[i] if isinstance(i, int) and -len(data) <= i < len(data) else None for i in indices]


def _sliced_contents(walk: Walk, node: ir.Node) -> Dims | None:
    data = walk.read(node.inputs[0])
    bounds = [walk.read(v) for v in node.inputs[1:]]
    start, end = bounds[0], bounds[1]
    step = bounds[3] if len(bounds) > 3 else [1]
    if data is None or start is None or end is None or step is None:
        return None
    if not len(start) == len(end) == len(step) == 1:
        return None
    a, b, c = start[0], end[0], step[0]
    return data[a:b:c] if isinstance(a, int) and isinstance(b, int) and isinstance(c, int) and c else None


def _joined_contents(walk: Walk, node: ir.Node) -> Dims | None:
    parts = [walk.read(v) for v in node.inputs]
    joined: Dims = []
    for part in parts:
        if part is None:
            return None
        joined += part
    return joined


_NUMBERS: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Max": max, "Min": min,
    "Equal": operator.eq, "Less": operator.lt, "Greater": operator.gt,
    "And": operator.and_, "Or": operator.or_,
}  # fmt: skip


def _computed_contents(walk: Walk, node: ir.Node) -> Dims | None:
    if len(node.inputs) != 2:
        return None
    a, b = (walk.read(v) for v in node.inputs)
    if a is None or b is None or not a or not b:
        return None
    length = max(len(a), len(b))
    a, b = (x * length if len(x) == 1 else x for x in (a, b))
    return [_compute(node.op_type, x, y) for x, y in zip(a, b, strict=True)] if len(a) == len(b) else None


def _compute(op: str, a: Dim, b: Dim) -> Dim:
    if a is None or b is None:
        return None
    if isinstance(a, int) and isinstance(b, int):
        if op == "Div":
            return a // b if b > 0 and a >= 0 else None  # ONNX truncates, Python floors
        return int(_NUMBERS[op](a, b))
    if any(isinstance(d, int) and d < 0 for d in (a, b)):
        return 0 if op == "Equal" else None  # no size is negative
    match op:
        case "Equal":
            return 1 if a == b else None
        case "Mul":
            return quotient([a, b], [])
        case "Div":
            return quotient([a], [b]) if isinstance(b, int) else None
        case "Add" if a == 0:
            return b
        case "Add" | "Sub" if b == 0:
            return a
    return None


def _product_contents(walk: Walk, node: ir.Node) -> Dims | None:
    data = walk.read(node.inputs[0])
    every = not node.attributes.get_int("noop_with_empty_axes", 0)
    return [quotient(data, [])] if data is not None and every else None


def _chosen_contents(walk: Walk, node: ir.Node) -> Dims | None:
    condition, yes, no = (walk.read(v) for v in node.inputs)
    if condition is None or yes is None or no is None or not (condition and yes and no):
        return None
    length = max(map(len, (condition, yes, no)))
    condition, yes, no = (x * length if len(x) == 1 else x for x in (condition, yes, no))
    if not len(condition) == len(yes) == len(no):
        return None
    return [None if c is None else y if c else n for c, y, n in zip(condition, yes, no, strict=True)]


def _filled_contents(walk: Walk, node: ir.Node) -> Dims | None:
    sizes = walk.read(node.inputs[0])
    fill = node.attributes.get("value")
    tensor = None if fill is None else fill.as_tensor()
    if tensor is None or tensor.numpy().dtype.kind not in "iub" or sizes is None or len(sizes) > 1:
        return None
    count = sizes[0] if sizes else 1
    return [int(tensor.numpy().item())] * count if isinstance(count, int) and count <= LIMIT else None


CONTENTS: dict[str, Callable[[Walk, ir.Node], Dims | None]] = {
    "Shape": _shape_contents, "Gather": _gathered_contents, "Slice": _sliced_contents,
    "Concat": _joined_contents, "Where": _chosen_contents, "ConstantOfShape": _filled_contents,
    "Cast": _cast_contents, "ReduceProd": _product_contents,
    **dict.fromkeys(("Identity", "Squeeze", "Unsqueeze", "Reshape"), _same_contents),
    **dict.fromkeys((*_NUMBERS, "Div"), _computed_contents),
}  # fmt: skip
