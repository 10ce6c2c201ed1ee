"""Values that are known when compiled: which they are, what tells them apart, their arrays."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_tensor
from ...ir.evaluate import evaluate
from ...ir.quantized import blocked_weight
from ...reference import Array

_SMALL = 64
"""Elements up to which constants are compared by their contents: shapes, scalars."""

_DEPTH = 32
"""Nodes that a constant may be away from its initializers: passes have folded what is longer."""

_RANDOM = frozenset(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"))


class Constants:
    """The constants of one graph: initializers and all that follows from them alone."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def holds(self, value: ir.Value | None) -> bool:
        """Whether ``value`` is the same in every run."""
        return value is not None and self._holds(value, _DEPTH)

    def _holds(self, value: ir.Value, depth: int) -> bool:
        known = self._known.get(value)
        if known is None:
            known = self._is_constant(value, depth)
            if depth == _DEPTH or known:
                self._known[value] = known
        return known

    def _is_constant(self, value: ir.Value, depth: int) -> bool:
        if constant_tensor(value) is not None:
            return True
        node = value.producer()
        if depth == 0 or node is None or not node.inputs or node.op_type in _RANDOM:
            return False
        graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        if node.domain not in ("", "ai.onnx") or any(a.type in graphs for a in node.attributes.values()):
            return False
        return all(v is not None and self._holds(v, depth - 1) for v in node.inputs)


def key_of(value: ir.Value | None) -> Hashable:
    """What is equal for constants that are surely the same, in whichever entry they are."""
    tensor = constant_tensor(value)
    if tensor is not None:
        if isinstance(tensor, ir.ExternalTensor):
            return str(tensor.path), tensor.offset, tensor.nbytes, str(tensor.dtype), _shape(tensor)
        if tensor.size <= _SMALL and tensor.dtype != ir.DataType.STRING:
            return tensor.numpy().tobytes(), str(tensor.dtype), _shape(tensor)
        return id(tensor)
    node = None if value is None else value.producer()
    if node is None:
        return None
    attributes = tuple(sorted((a.name, str(a.value)) for a in node.attributes.values()))
    return node.op_type, attributes, tuple(key_of(v) for v in node.inputs), node.outputs.index(value)


def _shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(tensor.shape.numpy())


def name_of(value: ir.Value) -> str:
    """The name of the initializer that a constant mainly is: its first and largest."""
    node = value.producer()
    while node is not None and node.inputs and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    name = str(value.name or "constant")
    return name.removesuffix(".data").removesuffix(".rows")


def array_of(value: ir.Value) -> Array:
    """The array of a constant; 16-bit floats stay 16-bit."""
    tensor = constant_tensor(value)
    if tensor is not None:
        return tensor.numpy()
    blocked = blocked_weight(value)
    if blocked is not None:
        return blocked.numpy()
    node = value.producer()
    assert node is not None
    inputs = [array_of(v) for v in node.inputs if v is not None]
    if node.op_type == "Cast":
        return inputs[0].astype(ir.DataType(node.attributes.get_int("to", 1)).numpy())
    return _evaluated(node, inputs)[node.outputs.index(value)]


def plain(array: Array) -> Array:
    """As a kernel reads it: floats in 32 bits, truth values in bytes, contiguous."""
    if array.dtype.kind in "fV" or array.dtype.name in ("bfloat16", "float16"):
        array = array.astype(np.float32)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    return np.ascontiguousarray(array)


def _evaluated(node: ir.Node, arrays: list[Array]) -> list[Array]:
    inputs = [
        ir.Value(
            name=f"i{i}", type=ir.TensorType(ir.DataType.from_numpy(a.dtype)), shape=ir.Shape(list(a.shape))
        )
        for i, a in enumerate(arrays)
    ]
    outputs = [ir.Value(name=f"o{i}", type=v.type, shape=v.shape) for i, v in enumerate(node.outputs)]
    attributes = list(node.attributes.values())
    copy = ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name="node")
    graph_of = node.graph
    opsets = dict(graph_of.opset_imports) if graph_of is not None else {"": 23}
    graph = ir.Graph(inputs, outputs, nodes=[copy], name="constant", opset_imports=opsets)
    found = evaluate(
        ir.Model(graph, ir_version=10), {str(v.name): a for v, a in zip(inputs, arrays, strict=True)}
    )
    return [found[str(v.name)] for v in outputs]
