"""Look-ups and scatters: elements at places that other tensors name."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..indices import checked
from ..lowering import Lowering, Rule, normalized


def _within(b: Lowering, node: ir.Node, sizes: list[Any]) -> Any:
    """The indices of a node, its second input, for axes of these sizes."""
    assert node.inputs[1] is not None
    return checked(b, node, node.inputs[1], sizes)


def _gather(b: Lowering, node: ir.Node) -> Any:
    data = b.value(node.inputs[0])
    axis = normalized(node.attributes.get_int("axis", 0), len(b.shape(data)))
    indices = _within(b, node, [b.shape(data)[axis]])

    def gather(x: Any, at: Any) -> Any:
        rank = len(at.shape)

        def element(*i: Any) -> Any:
            return x(*i[:axis], at(*i[axis : axis + rank]), *i[axis + rank :])

        return b.te.compute([*x.shape[:axis], *at.shape, *x.shape[axis + 1 :]], element, name="gather")

    return b.compute(gather, data, indices)


def _gather_elements(b: Lowering, node: ir.Node) -> Any:
    data = b.value(node.inputs[0])
    axis = normalized(node.attributes.get_int("axis", 0), len(b.shape(data)))
    indices = _within(b, node, [b.shape(data)[axis]])

    def gather_elements(x: Any, at: Any) -> Any:
        def element(*i: Any) -> Any:
            return x(*i[:axis], at(*i), *i[axis + 1 :])

        return b.te.compute(at.shape, element, name="gather_elements")

    return b.compute(gather_elements, data, indices)


def _gather_nd(b: Lowering, node: ir.Node) -> Any:
    data, batch = b.value(node.inputs[0]), node.attributes.get_int("batch_dims", 0)
    width = b.shape(b.value(node.inputs[1]))[-1]
    indices = _within(b, node, b.shape(data)[batch : batch + width])

    def gather_nd(x: Any, at: Any) -> Any:
        lead = len(at.shape) - 1

        def element(*i: Any) -> Any:
            found = [at(*i[:lead], p) for p in range(width)]
            return x(*i[:batch], *found, *i[lead:])

        return b.te.compute([*at.shape[:-1], *x.shape[batch + width :]], element, name="gather_nd")

    return b.compute(gather_nd, data, indices)


def _needs_width(node: ir.Node) -> str | None:
    value = node.inputs[1]
    known = value is not None and value.shape is not None and isinstance(value.shape[-1], int)
    return None if known else "how many indices name a place is known only when it runs"


def _one_hot(b: Lowering, node: ir.Node) -> Any:
    indices, depth, values = b.values(node)
    rank = len(b.shape(indices))
    axis = normalized(node.attributes.get_int("axis", -1), rank + 1)
    sizes = b.wanted(node.outputs[0])
    if sizes is None:
        [count] = b.runtime_shape(depth, None)
        sizes = [*b.shape(indices)[:axis], count, *b.shape(indices)[axis:]]

    def one_hot(at: Any, pair: Any, shape: Any) -> Any:
        def element(*i: Any) -> Any:
            index = at(*i[:axis], *i[axis + 1 :]).astype("int64")
            zero = b.tirx.const(0, "int64")
            index = b.tirx.Select(index < zero, index + shape[axis], index)
            return b.tirx.Select(index == i[axis], pair(1), pair(0))

        return b.te.compute(shape, element, name="one_hot")

    return b.compute(one_hot, indices, values, b.prims(sizes))


def _scatter_elements(b: Lowering, node: ir.Node) -> Any:
    data, updates = b.value(node.inputs[0]), b.value(node.inputs[2])
    axis = normalized(node.attributes.get_int("axis", 0), len(b.shape(data)))
    indices = _within(b, node, [b.shape(data)[axis]])
    kind = _KINDS[node.attributes.get_string("reduction", "none")]
    return b.emit(b.relax.op.scatter_elements(data, indices, updates, axis, kind))


def _scatter_nd(b: Lowering, node: ir.Node) -> Any:
    data, updates = b.value(node.inputs[0]), b.value(node.inputs[2])
    indices = _within(b, node, b.shape(data)[: b.shape(b.value(node.inputs[1]))[-1]])
    kind = _KINDS[node.attributes.get_string("reduction", "none")]
    return b.emit(b.relax.op.scatter_nd(data, indices, updates, kind))


_KINDS = {"none": "update", "add": "add", "mul": "mul", "max": "max", "min": "min"}


RULES: dict[str, Rule] = {
    "Gather": Rule(_gather),
    "GatherElements": Rule(_gather_elements),
    "GatherND": Rule(_gather_nd, _needs_width),
    "OneHot": Rule(_one_hot),
    "ScatterElements": Rule(_scatter_elements),
    "ScatterND": Rule(_scatter_nd, _needs_width),
}
