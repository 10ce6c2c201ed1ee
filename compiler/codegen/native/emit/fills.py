"""Tensors that follow from shapes alone: Shape, Size, Range, ConstantOfShape, what small integers hold."""

from __future__ import annotations

import onnx_ir as ir

from ....ir.constants import scalar
from .base import Entry, Operator, bare
from .contents import contents, single
from .expressions import INT64, SUFFIXES, literal
from .loops import SMALL, loop, written


def emit_contents(node: ir.Node, entry: Entry) -> None:
    """The small integers of a node whose output follows from shapes."""
    known = contents(node.outputs[0], entry)
    assert known is not None
    pointer = entry.new(node.outputs[0]).pointer
    lines = [f"    {pointer}[{place}] = {size};" for place, size in enumerate(known)]
    entry.step(node, "\n".join(["if (w->index == 0) {", *lines, "}"]))


def _shape(node: ir.Node, entry: Entry) -> None:
    emit_contents(node, entry)


def _constant_of_shape(node: ir.Node, entry: Entry) -> None:
    tensor = node.attributes.get("value")
    value = 0.0 if tensor is None else tensor.as_tensor().numpy().reshape(-1)[0].item()
    dtype = node.outputs[0].dtype
    assert dtype is not None
    target = entry.new(node.outputs[0])
    text = literal(value, dtype)
    entry.step(node, loop(target.shape, [written(target)], lambda y: [f"{y[0]} = {text};"]))


def _range(node: ir.Node, entry: Entry) -> None:
    dtype = node.outputs[0].dtype
    start, _, step = (_number(v, entry) for v in node.inputs)
    target = entry.new(node.outputs[0])
    (size,) = target.shape
    index = "i" if dtype == INT64 else f"({target.ctype})i"
    ramp = index if step == "1" else f"{index} * {step}"
    lines = ["for (int64_t i = part.begin; i < part.end; i++)"]
    lines.append(f"    {target.pointer}[i] = {ramp if start == '0' else f'{start} + {ramp}'};")
    share = f"range part = share(w, {bare(size)}, {SMALL});"
    entry.step(node, "\n".join(["{", *(f"    {line}" for line in (share, *lines)), "}"]))


def _number(value: ir.Value | None, entry: Entry) -> str:
    """A scalar input in C: what is known of it, else its element."""
    assert value is not None and value.dtype is not None
    known = single(value, entry)
    if known is not None:
        return str(known)
    number = scalar(value)
    if number is not None:
        return literal(number, value.dtype)
    return f"{entry.view(value).pointer}[0]"


def _of_numbers(node: ir.Node) -> str | None:
    dtype = node.outputs[0].dtype
    return None if dtype in SUFFIXES else f"it makes {None if dtype is None else dtype.name.lower()}"


OPERATORS = {
    "Shape": Operator(_shape),
    "Size": Operator(_shape),
    "Range": Operator(_range, _of_numbers),
    "ConstantOfShape": Operator(_constant_of_shape, _of_numbers),
}
