"""The integers that operators compute from shapes, each a number, a symbol or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..program import Dim
from .symbol_sizes import Dims

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


def _computed_contents(walk: Walk, node: ir.Node) -> Dims | None:
    a, b = (walk.read(v) for v in node.inputs[:2])
    if a is None or b is None or not a or not b:
        return None
    length = max(len(a), len(b))
    a, b = (x * length if len(x) == 1 else x for x in (a, b))
    return [_compute(node.op_type, x, y) for x, y in zip(a, b, strict=True)] if len(a) == len(b) else None


def _compute(op: str, a: Dim, b: Dim) -> Dim:
    if op == "Equal":
        if a is None or b is None:
            return None
        known = (isinstance(a, int) and isinstance(b, int)) or a == b
        negative = (isinstance(a, int) and a < 0) or (isinstance(b, int) and b < 0)  # no size is
        return int(a == b) if known else 0 if negative else None
    if isinstance(a, int) and isinstance(b, int):
        quotient = a // b if b > 0 and a >= 0 else None  # ONNX truncates, Python floors
        return {"Add": a + b, "Sub": a - b, "Mul": a * b, "Div": quotient}[op]
    neutral = 1 if op in ("Mul", "Div") else 0
    if b == neutral:
        return a
    return b if a == neutral and op in ("Add", "Mul") else None


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
    if tensor is None or not tensor.dtype.is_integer() or sizes is None or len(sizes) != 1:
        return None
    count = sizes[0]
    return [int(tensor.numpy().item())] * count if isinstance(count, int) and count <= LIMIT else None


CONTENTS: dict[str, Callable[[Walk, ir.Node], Dims | None]] = {
    "Shape": _shape_contents, "Gather": _gathered_contents, "Slice": _sliced_contents,
    "Concat": _joined_contents, "Where": _chosen_contents, "ConstantOfShape": _filled_contents,
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"), _same_contents),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Equal"), _computed_contents),
}  # fmt: skip
