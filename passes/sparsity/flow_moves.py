"""How units pass operators that only move elements: transposed, reshaped, sliced, split, joined."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Dim
from ...compiler.reference import Array
from .flow import NONE, Blocked, Flow, Found, Rule, dims, integers, rank, size

X, Y = 0, -1


def _transpose(node: ir.Node, flow: Flow) -> Found:
    order = node.attributes.get_ints("perm", range(rank(node.inputs[0]))[::-1])
    for axis, units in flow.at(node, X).items():
        yield Y, list(order).index(axis), units
    for axis, units in flow.at(node, Y).items():
        yield X, order[axis], units


def _reshape(node: ir.Node, flow: Flow) -> Found:
    yield from across(node, flow)
    if node.op_type == "Reshape":
        integers(node, 1)


def across(node: ir.Node, flow: Flow) -> Found:
    """From either side of a Reshape to the other, whatever its sizes are made of. Raises: Blocked."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    for here, there, slot in ((x, y, X), (y, x, Y)):
        for axis, units in flow.at(node, slot).items():
            found = reshaped(units, axis, dims(here), dims(there))
            if found is None:
                raise Blocked(f"{node.op_type} {node.name} mixes them with other axes")
            yield ~slot, *found


def _cut_reshape(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    sizes = integers(node, 1) or []
    wanted = list(sizes)
    for axis, units in flow.at(node, Y).items():
        if wanted[axis] > 0:
            wanted[axis] = len(flow.keeps(units))
    if wanted != sizes:
        node.replace_input_with(1, at.const(np.array(wanted, np.int64), f"{node.outputs[0].name}.shape"))


def reshaped(units: Array, axis: int, here: list[Dim], there: list[Dim]) -> tuple[int, Array] | None:
    """The axis and its units after a reshape of sizes ``here`` to ``there``; None if there are several.

    >>> reshaped(np.repeat(np.arange(2), 3), 1, ["n", 6], ["n", 2, 3])
    (1, array([0, 1]))
    """
    for index, (a, b) in enumerate(zip(here, there, strict=False)):
        if a is None or a != b:
            break
        if index == axis:
            return axis, units
    i, j = len(here), len(there)
    while i and j:
        a, b = i - 1, j - 1
        while (p := _product(here[a:i])) != (q := _product(there[b:j])) or p is None:
            if not (isinstance(p, int) and isinstance(q, int)):
                return None
            a, b = (a - 1, b) if p < q else (a, b - 1)
            if a < 0 or b < 0:
                return None
        if a <= axis < i:
            return _within(units, axis - a, here[a:i], there[b:j], b)
        i, j = a, b
    return None


def _within(
    units: Array, axis: int, here: list[Dim], there: list[Dim], first: int
) -> tuple[int, Array] | None:
    shape = [int(d) for d in here if isinstance(d, int)]
    if len(shape) != len(here):
        return (first, units) if len(here) == len(there) == 1 else None
    lifted = units.reshape([-1 if k == axis else 1 for k in range(len(here))])
    spread = np.broadcast_to(lifted, shape).reshape([int(d) for d in there if isinstance(d, int)])
    for k in range(spread.ndim):
        along = np.moveaxis(spread, k, -1)
        if (along == along.reshape(-1, along.shape[-1])[0]).all():
            return first + k, along.reshape(-1, along.shape[-1])[0].copy()
    return None


def _product(sizes: list[Dim]) -> int | str | None:
    """Of known sizes; a symbol by itself is its own."""
    if len(sizes) == 1:
        return sizes[0]
    numbers = [d for d in sizes if isinstance(d, int)]
    return math.prod(numbers) if len(numbers) == len(sizes) else None


def _ranges(node: ir.Node) -> dict[int, tuple[int, int]]:
    """Start and end by axis of a Slice along axes of known size. Raises: Blocked unless in steps of one."""
    x = node.inputs[0]
    assert x is not None
    starts, ends, axes, steps = (integers(node, slot) for slot in (1, 2, 3, 4))
    assert starts is not None and ends is not None
    axes = list(range(len(starts))) if axes is None else [a % rank(x) for a in axes]
    if any(step != 1 for step in steps or ()):
        raise Blocked(f"Slice {node.name} takes steps through them")
    found = {}
    for axis, start, end in zip(axes, starts, ends, strict=True):
        length = size(x, axis)
        if isinstance(length, int):
            first, last, _ = slice(start, end).indices(length)
            found[axis] = first, max(first, last)
    return found


def _slice(node: ir.Node, flow: Flow) -> Found:
    ranges = _ranges(node)
    x = node.inputs[0]
    assert x is not None
    for axis, units in flow.at(node, X).items():
        yield Y, axis, units[slice(*ranges[axis])] if axis in ranges else units
    for axis, units in flow.at(node, Y).items():
        yield X, axis, _placed(units, x, axis, ranges[axis][0]) if axis in ranges else units


def _placed(units: Array, whole: ir.Value, axis: int, start: int) -> Array:
    length = size(whole, axis)
    if not isinstance(length, int):
        raise Blocked(f"the size of {whole.name} along axis {axis} is not known")
    found = np.full(length, NONE, np.int32)
    found[start : start + len(units)] = units
    return found


def _cut_slice(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    ranges, name = _ranges(node), node.outputs[0].name
    x = node.inputs[0]
    starts, ends, axes = (integers(node, slot) for slot in (1, 2, 3))
    assert x is not None and starts is not None and ends is not None
    order = list(range(len(starts))) if axes is None else [a % rank(x) for a in axes]
    for axis, units in flow.at(node, X).items():
        if axis in ranges:
            kept, place = flow.keeps(units), order.index(axis)
            starts[place], ends[place] = (int(np.searchsorted(kept, edge)) for edge in ranges[axis])
            node.replace_input_with(1, at.const(np.array(starts, np.int64), f"{name}.starts"))
            node.replace_input_with(2, at.const(np.array(ends, np.int64), f"{name}.ends"))


def _parts(node: ir.Node, axis: int) -> list[int]:
    """Where the outputs of a Split start along ``axis``, and its end."""
    found = [size(output, axis) for output in node.outputs]
    known = [part for part in found if isinstance(part, int)]
    if len(known) < len(found):
        raise Blocked(f"the sizes of the parts of Split {node.name} are not known")
    return [sum(known[:index]) for index in range(len(known) + 1)]


def _split(node: ir.Node, flow: Flow) -> Found:
    x = node.inputs[0]
    assert x is not None
    along = node.attributes.get_int("axis", 0) % rank(x)
    outputs = range(-1, -1 - len(node.outputs), -1)
    integers(node, 1)
    for axis, units in flow.at(node, X).items():
        edges = _parts(node, along) if axis == along else []
        for index, slot in enumerate(outputs):
            yield slot, axis, units[edges[index] : edges[index + 1]] if edges else units
    for index, slot in enumerate(outputs):
        for axis, units in flow.at(node, slot).items():
            here = axis == along
            yield X, axis, _placed(units, x, axis, _parts(node, along)[index]) if here else units


def _cut_split(node: ir.Node, flow: Flow, at: Rewriter) -> None:
    along = node.attributes.get_int("axis", 0) % rank(node.inputs[0])
    units = flow.at(node, X).get(along)
    if units is None:
        return
    edges = np.searchsorted(flow.keeps(units), _parts(node, along))
    sizes = np.diff(edges).astype(np.int64)
    if len(node.inputs) < 2 and len(set(sizes.tolist())) == 1:
        return
    node.attributes.pop("num_outputs", None)
    node.resize_inputs(2)
    node.replace_input_with(1, at.const(sizes, f"{node.name}.sizes"))


def _concat(node: ir.Node, flow: Flow) -> Found:
    along = node.attributes.get_int("axis", 0) % rank(node.outputs[0])
    parts = [v for v in node.inputs if v is not None]
    sizes = [size(v, along) for v in parts]
    known = [s if isinstance(s, int) else 0 for s in sizes]
    for slot in (Y, *range(len(parts))):
        for axis, units in flow.at(node, slot).items():
            if axis != along:
                yield from ((other, axis, units) for other in (Y, *range(len(parts))) if other != slot)
            elif len([s for s in sizes if isinstance(s, int)]) < len(sizes):
                raise Blocked(f"Concat {node.name} joins them with parts of unknown size")
            elif slot == Y:
                edges = np.cumsum([0, *known])
                yield from ((i, axis, units[edges[i] : edges[i + 1]]) for i in range(len(parts)))
            else:
                yield Y, axis, _placed(units, node.outputs[0], axis, sum(known[:slot]))


MOVES = {
    "Transpose": Rule(_transpose),
    "Reshape": Rule(_reshape, _cut_reshape),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Flatten"), Rule(_reshape)),
    "Slice": Rule(_slice, _cut_slice),
    "Split": Rule(_split, _cut_split),
    "Concat": Rule(_concat),
}
"""By operator."""
