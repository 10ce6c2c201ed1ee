"""Shape inference of one node as a standard operator, from recorded dtypes, shapes and small constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import onnx_ir as ir

from ..program import OPSET, Dim, dim_of
from .base import Inferred

if TYPE_CHECKING:
    import onnx

Data = Callable[[ir.Value], "onnx.TensorProto | None"]


def infer_standard(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, ir.Attr],
    outputs: int = 1,
    domain: str = "",
    opsets: Mapping[str, int] | None = None,
    data: Data = lambda value: None,
) -> Sequence[Inferred]:
    """dtype and shape of each output of ``op_type``; ``data`` shows small constants to inference.

    Raises: onnx.shape_inference.InferenceError if the inputs don't fit the operator.
    """
    import onnx

    opsets = opsets or {"": OPSET}
    unknown: Sequence[Inferred] = [(None, None)] * outputs
    schema = onnx.defs.get_schema(op_type, opsets[domain], domain)
    present = [v for v in inputs if v is not None]
    if not schema.has_type_and_shape_inference_function or any(v.type is None for v in present):
        return unknown
    node = onnx.NodeProto(
        op_type=op_type,
        domain=domain,
        input=["" if v is None else str(v.name) for v in inputs],
        output=[f"{i}:out" for i in range(outputs)],
        attribute=[ir.serde.serialize_attribute(a) for a in attributes.values()],
    )
    try:
        types = onnx.shape_inference.infer_node_outputs(
            schema,
            node,
            {str(v.name): _type_proto(v) for v in present},
            {str(v.name): tensor for v in present if (tensor := data(v)) is not None},
            opset_imports=[onnx.helper.make_opsetid(d, v) for d, v in opsets.items()],
        )
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:  # by what it trips over
        raise onnx.shape_inference.InferenceError(str(error)) from error
    return [_inferred(types.get(name)) for name in node.output]


def _type_proto(value: ir.Value) -> onnx.TypeProto:
    if not isinstance(value.type, ir.TensorType):
        return ir.serde.serialize_value(value).type
    dims = None if value.shape is None else tuple(map(dim_of, value.shape))
    return _tensor_type(int(value.type.dtype), dims)


@lru_cache(1 << 12)
def _tensor_type(dtype: int, dims: tuple[Dim, ...] | None) -> onnx.TypeProto:
    import onnx

    return onnx.helper.make_tensor_type_proto(dtype, dims)


def _inferred(proto: onnx.TypeProto | None) -> Inferred:
    if proto is None or not proto.HasField("tensor_type"):
        return None, None
    dtype = ir.DataType(proto.tensor_type.elem_type)
    return (None if dtype == ir.DataType.UNDEFINED else dtype), ir.serde.deserialize_type_proto_for_shape(
        proto
    )


def infer_like(op_type: str, *attributes: str) -> Callable[[ir.Node], Sequence[Inferred]]:
    """Inference of a fused operator whose first inputs and these ``attributes`` are ``op_type``'s."""

    def infer(node: ir.Node) -> Sequence[Inferred]:
        from onnx.shape_inference import InferenceError

        kept = {name: a for name, a in node.attributes.items() if name in attributes}
        try:
            return infer_standard(op_type, node.inputs[:3], kept)
        except InferenceError:
            return [(None, None)]

    return infer
