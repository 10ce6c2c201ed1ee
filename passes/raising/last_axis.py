"""Parts of the last axis: what Slice and Split cut out of it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ...compiler.ir.constants import constant
from .match import Region, rank, size


@dataclass(frozen=True, slots=True)
class Part:
    """Elements ``start:stop:step`` of the last axis of ``source``, all counted from the front."""

    source: ir.Value
    start: int
    stop: int
    step: int = 1


def part_of(value: ir.Value | None, region: Region) -> Part | None:
    """``value`` as a part of another value's last axis; the node that cuts it joins ``region``."""
    node = region.find(value, "Slice", "Split")
    source = node.inputs[0] if node is not None else None
    count, width = rank(source), size(source, -1)
    if node is None or source is None or count is None or width is None or value is None:
        return None
    if node.op_type == "Split":
        return _split_part(node, source, value, count)
    bounds = [constant(v) for v in node.inputs[1:]]
    if len(bounds) < 3 or any(b is None or b.size != 1 for b in bounds):
        return None
    start, stop, axis, *step = (int(b.reshape(())) for b in bounds if b is not None)
    if axis not in (-1, count - 1) or (step and step[0] < 1):
        return None
    start, stop, by = slice(start, stop, step[0] if step else 1).indices(width)
    return Part(source, start, stop, by)


def _split_part(node: ir.Node, source: ir.Value, value: ir.Value, count: int) -> Part | None:
    if node.attributes.get_int("axis", 0) not in (-1, count - 1):
        return None
    widths = [size(o, -1) for o in node.outputs]
    index = next(i for i, o in enumerate(node.outputs) if o is value)
    known = [w for w in widths if w is not None]
    if len(known) != len(widths):
        return None
    return Part(source, sum(known[:index]), sum(known[: index + 1]))
