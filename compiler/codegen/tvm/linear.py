"""Linear layers with constant weights as one kernel each: product, bias and activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from ...ir.constants import constant_tensor
from ...ir.quantized import BlockedWeight, blocked_weight
from . import dense
from .kernels import blocked, sparse
from .kernels.kernel import Cpu, Kernel
from .lowering import Lowering, given

_LEAST = 4096
"""Elements of a weight from which on packing it pays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """A product with a bias and an activation behind it, by ``nodes``: the last one gives the result."""

    nodes: tuple[ir.Node, ...]
    bias: ir.Value | None = None
    activation: str = ""

    @property
    def result(self) -> ir.Value:
        """What it computes."""
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True, slots=True)
class Layer(Followed):
    """``activation(x @ weight + bias)``.

    ``weight``: a matrix [K, N], [N, K] if it is ``transposed``, or one in blocks, [N, K].
    """

    x: ir.Value
    weight: ir.TensorProtocol | BlockedWeight
    transposed: bool


def layer_at(node: ir.Node) -> Layer | None:
    """The layer whose product ``node`` is, with what follows it; None if there is none with a kernel."""
    if node.domain != "" or not _is_float(node.outputs[0]):
        return None
    layer = _matmul(node) if node.op_type == "MatMul" else _gemm(node) if node.op_type == "Gemm" else None
    if layer is None:
        return None
    return _activated(layer if layer.bias is not None else _biased(layer))


def lower(b: Lowering, layer: Layer, kernels: dict[object, Kernel]) -> Any:
    """The layer's result. ``kernels``: those made before; entries share them."""
    assert b.cpu is not None
    x = b.value(layer.x)
    *lead, inputs = b.shape(x)
    rows: Any = math.prod(lead)
    known = rows if isinstance(rows, int) else None
    key = (_identity(layer.weight), layer.transposed, known, layer.bias is not None, layer.activation)
    kernel = kernels.get(key)
    if kernel is None:
        kernel = kernels[key] = _kernel(layer, known, b.cpu, kernels)
    flat = b.emit(b.relax.op.reshape(x, b.relax.ShapeExpr([rows, inputs]))) if len(lead) != 1 else x
    weights = [b.parameter(t, str(t.dtype.numpy().name), tuple(t.shape.numpy())) for t in kernel.weights]
    bias = []
    if layer.bias is not None:
        tensor = constant_tensor(layer.bias)
        assert tensor is not None
        bias = [b.parameter(tensor, "float32", (tensor.size,))]
    outputs = _outputs(layer)
    found = b.call(kernel.function, [flat, *bias, *weights], [rows, outputs], "float32")
    return found if len(lead) == 1 else b.emit(b.relax.op.reshape(found, b.relax.ShapeExpr([*lead, outputs])))


def _outputs(layer: Layer) -> int:
    if isinstance(layer.weight, BlockedWeight):
        return layer.weight.shape[0]
    first, second = layer.weight.shape.numpy()
    return first if layer.transposed else second


def _identity(weight: ir.TensorProtocol | BlockedWeight) -> object:
    return id(weight.data) if isinstance(weight, BlockedWeight) else id(weight)


def _kernel(layer: Layer, rows: int | None, cpu: Cpu, kernels: dict[object, Kernel]) -> Kernel:
    """The kernel; tensors are packed once, whatever follows the product."""
    options: dict[str, Any] = {"bias": layer.bias is not None, "activation": layer.activation}
    if isinstance(layer.weight, BlockedWeight):
        made = blocked.matmul(layer.weight, rows, cpu, **options)
    elif sparse.declines(layer.weight, layer.transposed) is None:
        return sparse.matmul(layer.weight, rows, cpu, transposed=layer.transposed, **options)
    else:
        made = dense.matmul(layer.weight, rows, cpu, transposed=layer.transposed, **options)
    key = ("packed", _identity(layer.weight), layer.transposed)
    first = kernels.setdefault(key, made)
    return replace(made, weights=first.weights)


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _matrix(value: ir.Value | None) -> ir.TensorProtocol | None:
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2 or tensor.size < _LEAST:
        return None
    return tensor


def _matmul(node: ir.Node) -> Layer | None:
    x, weight = node.inputs[:2]
    if x is None or x.shape is None or len(x.shape) < 2:
        return None
    matrix = _matrix(weight)
    if matrix is not None:
        return Layer(x, matrix, False, nodes=(node,))
    turned = None if weight is None else weight.producer()
    if turned is None or turned.op_type != "Transpose" or turned.domain != "":
        return None
    order = turned.attributes.get("perm")
    if order is not None and tuple(order.as_ints()) != (1, 0):
        return None
    blocks = _blocks(turned.inputs[0])
    return None if blocks is None else Layer(x, blocks, True, nodes=(node,))


def _blocks(value: ir.Value | None) -> BlockedWeight | None:
    found = blocked_weight(value)
    return found if found is not None and blocked.declines(found) is None else None


def _gemm(node: ir.Node) -> Layer | None:
    numbers = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    x, bias, turned = node.inputs[0], given(node, 2), node.attributes.get_int("transB", 0) == 1
    if x is None or numbers != [1.0, 1.0] or node.attributes.get_int("transA", 0) == 1:
        return None
    weight = _matrix(node.inputs[1]) or (_blocks(node.inputs[1]) if turned else None)
    if weight is None:
        return None
    layer = Layer(x, weight, turned, nodes=(node,), bias=bias)
    return layer if bias is None or _is_vector(bias, _outputs(layer)) else None


def _is_vector(value: ir.Value | None, size: int) -> bool:
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    shape = tuple(tensor.shape.numpy())
    return bool(shape) and shape[-1] == size == tensor.size


def only_reader(nodes: tuple[ir.Node, ...], result: ir.Value) -> ir.Node | None:
    """The only node that reads what ``nodes`` compute; None if there are others, or it is an output."""
    uses = result.uses()
    if len(uses) != 1 or result.is_graph_output():
        return None
    reader = next(iter(uses)).node
    return reader if reader.graph is nodes[0].graph else None


def _biased(layer: Layer) -> Layer:
    reader = only_reader(layer.nodes, layer.result)
    if reader is None or (reader.domain, reader.op_type) != ("", "Add"):
        return layer
    other = reader.inputs[1] if reader.inputs[0] is layer.result else reader.inputs[0]
    if not _is_vector(other, _outputs(layer)):
        return layer
    return replace(layer, bias=other, nodes=(*layer.nodes, reader))


_ACTIVATIONS: dict[str, Callable[[ir.Node], str]] = {
    "Relu": lambda node: "relu",
    "Sigmoid": lambda node: "sigmoid",
    "Tanh": lambda node: "tanh",
    "Gelu": lambda node: (
        "gelu_tanh" if node.attributes.get_string("approximate", "none") == "tanh" else "gelu"
    ),
    "Swish": lambda node: "silu" if node.attributes.get_float("alpha", 1.0) == 1.0 else "",
}


def activation_of(node: ir.Node) -> str:
    """The name of an activation; empty for any other node."""
    if node.domain != "" or node.op_type not in _ACTIVATIONS:
        return ""
    return _ACTIVATIONS[node.op_type](node)


def _activated(layer: Layer) -> Layer:
    reader = only_reader(layer.nodes, layer.result)
    name = "" if reader is None else activation_of(reader)
    return replace(layer, activation=name, nodes=(*layer.nodes, reader)) if reader and name else layer
