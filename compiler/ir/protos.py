"""ModelProtos without weights, for onnx's tools: they copy what they are given, and a proto ends at 2 GB."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import onnx

_SMALL = 1024
"""Bytes up to which a constant's data stays: shapes, axes and pads are read by inference, weights are not."""


def proto_without_weights(model: ir.Model) -> onnx.ModelProto:
    """The model serialized with references to nowhere in place of its large initializers.

    Every domain that a node uses is imported. Subgraph initializers are treated alike.
    """
    import onnx

    with _weights_hidden(model.graphs()):
        proto = ir.serde.serialize_model(model)
    declared = {entry.domain for entry in proto.opset_import}
    for domain in sorted({node.domain for node in model.graph.all_nodes()} - declared):
        proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return proto


def proto_without_initializers(model: ir.Model) -> onnx.ModelProto:
    """The model serialized without the initializers of its main graph, to be fed by name like inputs."""
    with _weights_hidden([model.graph]):
        proto = ir.serde.serialize_model(model)
    del proto.graph.initializer[:]
    return proto


@contextmanager
def _weights_hidden(graphs: Iterable[ir.Graph]) -> Iterator[None]:
    hidden: list[tuple[ir.Value, ir.TensorProtocol]] = []
    for graph in graphs:
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None:
                continue
            name = str(value.name)
            if tensor.nbytes > _SMALL:
                shape = ir.Shape(tensor.shape.numpy())
                stand_in: ir.TensorProtocol = ir.ExternalTensor(
                    "hidden", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name
                )
            elif isinstance(tensor, ir.ExternalTensor):
                stand_in = ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
            else:
                continue
            hidden.append((value, tensor))
            value.const_value = stand_in
    try:
        yield
    finally:
        for value, tensor in hidden:
            value.const_value = tensor
