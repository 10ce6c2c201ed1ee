"""Shape invariants: what inference derives from a node's recorded inputs may not contradict its outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import dialect
from ..dialect.standard import infer_standard
from ..errors import Problem
from .check_structure import place, subgraphs
from .constants import constant_tensor
from .signatures import STANDARD_DOMAINS

if TYPE_CHECKING:
    import onnx

_SMALL = 256
"""Elements up to which a constant input's data is given to inference (shapes, axes, pads)."""

_READ = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT, ir.DataType.BOOL)


def inference_problems(model: ir.Model) -> Iterator[Problem]:
    """Contradictions at every node of the graph and its subgraphs; nodes that hold subgraphs are left out."""
    for node in model.graph.all_nodes():
        if any(subgraphs(node)) or node.op_identifier() in model.functions:
            continue
        if (schema := dialect.schema(node.domain, node.op_type)) is not None:
            yield from _compare(node, schema.infer(node))
        elif node.domain in STANDARD_DOMAINS:
            yield from _standard(node, model.opset_imports)


def _standard(node: ir.Node, opsets: Mapping[str, int]) -> Iterator[Problem]:
    from onnx.shape_inference import InferenceError

    try:
        inferred = infer_standard(
            node.op_type, node.inputs, node.attributes, len(node.outputs), node.domain, opsets, data=_small
        )
    except InferenceError as error:
        yield Problem(place(node), str(error).strip().removeprefix("[ShapeInferenceError] "))
        return
    yield from _compare(node, inferred)


def _small(value: ir.Value) -> onnx.TensorProto | None:
    tensor = constant_tensor(value)
    if tensor is None or tensor.dtype not in _READ or tensor.size > _SMALL:
        return None
    from onnx.numpy_helper import from_array

    return from_array(tensor.numpy())  # whole, as inference can't read external data


def _compare(node: ir.Node, inferred: Sequence[dialect.Inferred]) -> Iterator[Problem]:
    for value, (dtype, shape) in zip(node.outputs, inferred, strict=False):
        if dtype is not None and value.dtype is not None and value.dtype != dtype:
            yield Problem(
                place(node), f"output {value.name!r} is {value.dtype.name}, inference says {dtype.name}"
            )
        if shape is None or value.shape is None:
            continue
        if len(shape) != len(value.shape) or any(
            isinstance(a, int) and isinstance(b, int) and a != b
            for a, b in zip(shape, value.shape, strict=True)
        ):
            yield Problem(place(node), f"output {value.name!r} is {value.shape}, inference says {shape}")
