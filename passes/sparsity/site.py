"""A layer whose units may be removed: the product that reads them, found with everything else they touch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor
from ...compiler.reference import Array
from .flow import Blocked, Flow
from .flow_layers import RULES


@dataclass(frozen=True, slots=True)
class Site:
    """A layer whose units may go. ``node``: the one product that sums over them, its weight's columns.

    ``turned``: the weight is stored [columns, outputs]. ``columns``: int[columns], the unit of each.
    """

    flow: Flow
    node: ir.Node
    weight: ir.Value
    turned: bool
    columns: Array

    @property
    def name(self) -> str:
        """Of the weight."""
        return str(self.weight.name)

    def rows(self, tensor: ir.TensorProtocol) -> Array:
        """The weight as [outputs, columns]; what a convolution sums within a channel follows the outputs."""
        array = tensor.numpy().astype(np.float32)
        if array.ndim > 2:
            return np.moveaxis(array, 1, -1).reshape(-1, array.shape[1])
        return array.T if self.turned else array


def site_of(value: ir.Value, axis: int, units: Array) -> Site:
    """Where ``units`` along ``axis`` of ``value`` are. Raises: Blocked if they can't be removed."""
    flow = Flow(RULES, value.graph)
    flow.follow(value, axis, units)
    if len(flow.consumers) > 1:
        readers = sorted(str(stored(node)[0].name) for node in flow.consumers)
        raise Blocked(f"{' and '.join(readers)} read the same ones")
    if not flow.consumers or not flow.producers:
        raise Blocked("no product makes them, or none reads them")
    require_weights(flow)
    (node,) = flow.consumers
    weight, turned = stored(node)
    columns = flow.at(node, 1)
    return Site(flow, node, weight, turned, next(iter(columns.values())))


def require_weights(flow: Flow) -> None:
    """Raises: Blocked unless every product's weight is its own, and float32."""
    for node in (*flow.consumers, *flow.producers):
        weight, _ = stored(node)
        if len(weight.uses()) > 1 or weight.is_graph_output():
            raise Blocked(f"{weight.name} is read by more than {node.op_type} {node.name}")
        if weight.dtype != ir.DataType.FLOAT:
            raise Blocked(f"{weight.name} is {weight.dtype}, only float32 is cut")


def axes_of(flow: Flow, node: ir.Node) -> Mapping[int, Array]:
    """Units along the axes of a product's stored weight."""
    value = node.inputs[1]
    maker = None if value is None else value.producer()
    return flow.at(node, 1) if maker is None else flow.at(maker, 0)


def stored(node: ir.Node) -> tuple[ir.Value, bool]:
    """The initializer behind a product's weight, and whether it lies [in, out]."""
    value = node.inputs[1]
    assert value is not None
    turned = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
    maker = value.producer()
    if maker is not None and maker.op_type == "Transpose" and maker.inputs[0] is not None:
        value, turned = maker.inputs[0], not turned
    if constant_tensor(value) is None or not value.is_initializer():
        raise Blocked(f"the weight of {node.op_type} {node.name} is computed")
    return value, turned
