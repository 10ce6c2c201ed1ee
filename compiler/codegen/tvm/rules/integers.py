"""Tensors made of sizes and counts: shapes, ranges, filled tensors, triangles."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from ....ir.constants import is_constant
from ....ir.symbol_contents import CONTENTS
from ..lowering import Lowering, Rule, dtype_of, given


def follows(value: ir.Value | None, depth: int = 32) -> bool:
    """Whether the integers in a value follow from constants and from sizes."""
    if value is None or is_constant(value):
        return True
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in CONTENTS or not depth:
        return False
    return node.op_type == "Shape" or all(follows(v, depth - 1) for v in node.inputs)


def unknown_integers(*places: int) -> Callable[[ir.Node], str | None]:
    """A reason against nodes whose inputs at ``places`` hold integers that only running tells."""

    def reason(node: ir.Node) -> str | None:
        for place in places:
            value = given(node, place)
            if not follows(value):
                return f"{value.name!r} is known only when it runs" if value is not None else None
        return None

    return reason


def _shape(b: Lowering, node: ir.Node) -> Any:
    own = b.shape(b.value(node.inputs[0]))
    end = node.attributes.get("end")
    return sizes_as_tensor(b, own[node.attributes.get_int("start", 0) : end.as_int() if end else None])


def sizes_as_tensor(b: Lowering, sizes: list[Any]) -> Any:
    """Sizes as int64[number]."""
    if all(isinstance(s, int) for s in sizes):
        return b.constant(np.array(sizes, np.int64))

    def shape(values: Any) -> Any:
        def element(i: Any) -> Any:
            value = values[-1]
            for place in range(len(values) - 2, -1, -1):
                value = b.tirx.Select(i == place, values[place], value)
            return value.astype("int64")

        return b.te.compute([len(sizes)], element, name="shape")

    return b.compute(shape, b.prims(sizes))


def _size(b: Lowering, node: ir.Node) -> Any:
    total = math.prod(b.shape(b.value(node.inputs[0])))
    if isinstance(total, int):
        return b.constant(np.array(total, np.int64))
    return b.compute(lambda n: b.te.compute([], lambda: n.astype("int64"), name="size"), b.prims([total])[0])


def _range(b: Lowering, node: ir.Node) -> Any:
    start, limit, step = b.values(node)
    sizes = b.wanted(node.outputs[0])
    if sizes is None:
        known = [b.ints(v) for v in node.inputs]
        if known[0] == [0] and known[2] == [1] and known[1] is not None:
            sizes = known[1]
        else:
            sizes = b.runtime_shape(_count(b, start, limit, step), node.outputs[0])
    dtype = dtype_of(node.outputs[0].dtype)

    def span(first: Any, stride: Any, shape: Any) -> Any:
        def element(i: Any) -> Any:
            return first(*_zeros(first)) + i.astype(dtype) * stride(*_zeros(stride))

        return b.te.compute(shape, element, name="range")

    return b.compute(span, start, step, b.prims(sizes), name="range")


def _zeros(tensor: Any) -> list[int]:
    return [0] * len(tensor.shape)


def _count(b: Lowering, start: Any, limit: Any, step: Any) -> Any:
    """How many numbers a range has: int64[1]."""

    def count(first: Any, last: Any, stride: Any) -> Any:
        def element(i: Any) -> Any:
            a, z, s = (t(*_zeros(t)) for t in (first, last, stride))
            if str(first.dtype).startswith("float"):
                number = b.tirx.ceil((z - a) / s).astype("int64")
            else:
                a, z, s = (v.astype("int64") for v in (a, z, s))
                number = -b.tirx.floordiv(a - z, s)
            return b.tirx.max(number, b.tirx.const(0, "int64"))

        return b.te.compute([1], element, name="count")

    return b.compute(count, start, limit, step)


def _constant_of_shape(b: Lowering, node: ir.Node) -> Any:
    sizes = b.wanted(node.outputs[0])
    if sizes is None:
        sizes = b.ints(node.inputs[0])
    if sizes is None:
        sizes = b.runtime_shape(b.value(node.inputs[0]), node.outputs[0])
    attribute = node.attributes.get("value")
    fill = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy().reshape(-1)
    dtype = dtype_of(node.outputs[0].dtype)
    number = b.const(fill[0].item(), dtype)
    if not sizes:
        return b.constant(fill.reshape(()))
    return b.compute(
        lambda shape: b.te.compute(shape, lambda *i: number, name="full"), b.prims(sizes), name="full"
    )


def _trilu(b: Lowering, node: ir.Node) -> Any:
    upper, k = node.attributes.get_int("upper", 1), given(node, 1)
    offset = 0 if k is None else int((b.ints(k) or [0])[0])

    def trilu(x: Any) -> Any:
        def element(*i: Any) -> Any:
            behind = i[-1] - i[-2]
            kept = behind >= offset if upper else behind <= offset
            return b.tirx.Select(kept, x(*i), b.const(0, x.dtype))

        return b.te.compute(x.shape, element, name="trilu")

    return b.compute(trilu, b.value(node.inputs[0]))


def _eye(b: Lowering, node: ir.Node) -> Any:
    k, dtype = node.attributes.get_int("k", 0), dtype_of(node.outputs[0].dtype)

    def eye(x: Any) -> Any:
        one, zero = b.const(1, dtype), b.const(0, dtype)
        return b.te.compute(x.shape, lambda i, j: b.tirx.Select(j - i == k, one, zero), name="eye")

    return b.compute(eye, b.value(node.inputs[0]))


def _constant(b: Lowering, node: ir.Node) -> Any:
    return b.value(node.outputs[0])


RULES: dict[str, Rule] = {
    "Constant": Rule(_constant),
    "Shape": Rule(_shape),
    "Size": Rule(_size),
    "Range": Rule(_range),
    "ConstantOfShape": Rule(_constant_of_shape),
    "Trilu": Rule(_trilu, unknown_integers(1)),
    "EyeLike": Rule(_eye),
}
