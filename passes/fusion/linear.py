"""Linear layers as they stand in graphs, and several of one input as one wide product that is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor
from ...compiler.ir.rewrite import Rewriter
from ..base import decline


@dataclass(frozen=True, slots=True)
class Linear:
    """``output = x @ weight + bias``: a MatMul or Gemm, and the Add of its bias.

    ``weight``: [rows, columns], or [columns, rows] if ``transposed``; ``bias``: [columns] or None.
    """

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    transposed: bool
    product: ir.Node
    output: ir.Value

    @property
    def columns(self) -> int:
        """Width of the output."""
        assert self.weight.shape is not None
        return self.weight.shape.numpy()[0 if self.transposed else 1]


def linear(value: ir.Value | None) -> Linear | None:
    """The linear layer that computes ``value``, or None."""
    node = None if value is None else value.producer()
    if value is None or node is None or node.domain != "":
        return None
    if node.op_type == "MatMul":
        return _layer(node, None, value)
    if node.op_type == "Gemm":
        return _gemm(node, value)
    if node.op_type != "Add":
        return None
    for product, bias in (node.inputs, node.inputs[::-1]):
        maker = None if product is None else product.producer()
        if maker is None or maker.op_type != "MatMul" or maker.domain != "" or bias is None:
            continue
        found = _layer(maker, bias, value)
        if found is not None and bias.shape is not None and list(bias.shape) == [found.columns]:
            return found
    return None


def _layer(node: ir.Node, bias: ir.Value | None, output: ir.Value, transposed: bool = False) -> Linear | None:
    x, weight = node.inputs[:2]
    if x is None or weight is None or weight.shape is None or not weight.shape.is_static():
        return None
    return Linear(x, weight, bias, transposed, node, output) if len(weight.shape) == 2 else None


def _gemm(node: ir.Node, output: ir.Value) -> Linear | None:
    plain = node.attributes.get_float("alpha", 1.0) == 1 == node.attributes.get_float("beta", 1.0)
    if not plain or node.attributes.get_int("transA", False):
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    found = _layer(node, bias, output, bool(node.attributes.get_int("transB", False)))
    if found is None or (bias is not None and (bias.shape is None or list(bias.shape) != [found.columns])):
        return None
    return found


def fuse(layers: Sequence[Linear]) -> str:
    """Replace ``layers``, all of one input, by one product whose parts are split off; says what was done.

    Raises: NoMatch with the reason why they have to stay apart.
    """
    _require_fusable(layers)
    first = layers[0]
    members = {layer.product for layer in layers}
    assert first.product.graph is not None
    at = Rewriter(next(node for node in first.product.graph if node in members))
    columns = [layer.columns for layer in layers]
    weight = at.const(
        _joined([layer.weight for layer in layers], axis=0 if first.transposed else 1), "joined_weight"
    )
    bias = None
    if any(layer.bias is not None for layer in layers):
        bias = at.const(_joined_bias(layers), "joined_bias")
    if first.product.op_type == "Gemm":
        wide = at.op("Gemm", first.x, weight, bias, transB=int(first.transposed))
    else:
        wide = at.op("MatMul", first.x, weight)
        _typed(wide, first, sum(columns))
        wide = wide if bias is None else at.op("Add", wide, bias)
    _typed(wide, first, sum(columns))
    parts = at.ops("Split", wide, at.const(np.array(columns), "columns"), outputs=len(layers), axis=-1)
    for layer, part in zip(layers, parts, strict=True):
        _typed(part, layer, layer.columns)
        at.replace(layer.output, part)
    return f"one product of {' + '.join(map(str, columns))} columns"


def _require_fusable(layers: Sequence[Linear]) -> None:
    first = layers[0]
    for layer in layers:
        if layer.x is not first.x:
            decline("the projections read different inputs")
        if layer.product.graph is not first.product.graph:
            decline("the projections are in different graphs")
        if (layer.product.op_type, layer.transposed) != (first.product.op_type, first.transposed):
            decline("the projections mix MatMul, Gemm or transposed weights")
        if layer.weight.dtype != first.weight.dtype:
            decline("the weights differ in dtype")
        for value in (layer.weight, *([] if layer.bias is None else [layer.bias])):
            maker = value.producer()
            if maker is not None and maker.op_type == "DequantizeLinear":
                decline(f"{value.name} is quantized, its scales would have to be joined too")
            if constant_tensor(value) is None:
                decline(f"{value.name} is not constant")
            if len(value.uses()) > 1 or value.is_graph_output():
                decline(f"{value.name} is used elsewhere too: joining would store it twice")
        product = layer.product.outputs[0]
        if product is not layer.output and (product.is_graph_output() or len(product.uses()) > 1):
            decline(f"{product.name} is read without its bias too")
    if len({layer.product for layer in layers}) < len(layers):
        decline("one projection serves twice")


_JOINED: WeakValueDictionary[tuple[int, ...], ir.LazyTensor] = WeakValueDictionary()
"""Joined tensors by their parts, which they hold: entries that share weights share the joined ones too."""


def _joined(values: Sequence[ir.Value], axis: int) -> ir.LazyTensor:
    """The constants joined along ``axis`` when the tensor is read; nothing is loaded now."""
    tensors = [tensor for tensor in map(constant_tensor, values) if tensor is not None]
    key = axis, *map(id, tensors)
    known = _JOINED.get(key)
    if known is not None:
        return known
    shape = list(tensors[0].shape.numpy())
    shape[axis] = sum(tensor.shape.numpy()[axis] for tensor in tensors)
    made = _JOINED[key] = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis)),
        dtype=tensors[0].dtype,
        shape=ir.Shape(shape),
        name="joined",
    )
    return made


def _joined_bias(layers: Sequence[Linear]) -> ir.TensorProtocol:
    """Biases side by side, zeros where a layer has none."""
    dtype = layers[0].weight.dtype
    assert dtype is not None
    parts = []
    for layer in layers:
        tensor = constant_tensor(layer.bias)
        parts.append(np.zeros(layer.columns, dtype.numpy()) if tensor is None else tensor.numpy())
    return ir.tensor(np.concatenate(parts), dtype=dtype)


def _typed(value: ir.Value, layer: Linear, columns: int) -> None:
    value.type = layer.output.type
    if layer.output.shape is not None:
        value.shape = ir.Shape([*list(layer.output.shape)[:-1], columns])
