"""Constant folding: deterministic operators over small constants, and weight transposes as lazy tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, constant_tensor, is_widening
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import OPSET
from ...compiler.reference import Array
from ..base import PassContext, RewritePass, decline, skip

FOLDABLE = frozenset(
    {"Abs", "Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Cos", "Div", "Equal", "Erf", "Exp"}
    | {"Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual"}
    | {"Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal"}
    | {"ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterND", "Sigmoid", "Sign", "Sin"}
    | {"Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze"}
    | {"Where", "Xor"}
)
"""Operators whose value is fixed by the specification: no randomness, no implementation-defined result."""

BROADCASTS = frozenset({"Add", "And", "Div", "Equal", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Where"})

EXACT_KINDS = "fiub"
"""numpy kinds folded: floats, integers and booleans; no strings, sequences or packed types."""


@dataclass(frozen=True)
class FoldConstants(RewritePass):
    """Compute operators whose inputs are constants.

    ``limit``: elements a result and its inputs may have. A larger weight is folded only by Transpose,
    into a lazy tensor that is computed while the weight is written, and only where no other node reads
    the weight, so that it is neither loaded nor stored twice.
    """

    name: ClassVar[str] = "fold-constants"
    anchors: ClassVar[frozenset[str]] = FOLDABLE
    limit: int = 1 << 16

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Replace the outputs by initializers."""
        inputs = [v for v in node.inputs if v is not None]
        if node.domain != "" or any(constant_tensor(v) is None for v in inputs):
            skip()
        if not inputs or any(o.is_graph_output() for o in node.outputs) or not isinstance(at.graph, ir.Graph):
            skip()
        if any((o.dtype or ir.DataType.UNDEFINED).bitwidth < 8 for o in node.outputs if o.dtype is not None):
            skip()
        if is_widening(node):
            decline("its input is stored in fewer bits")
        if node.op_type == "Transpose" and inputs[0].const_value is not None and self._large(inputs[0]):
            return _transpose_lazily(node, inputs[0], at)
        arrays = [None if v is None else constant(v, self.limit) for v in node.inputs]
        if any(a is None and v is not None for a, v in zip(arrays, node.inputs, strict=True)):
            decline(f"an input has more than {self.limit} elements")
        if any(a is not None and a.dtype.kind not in EXACT_KINDS for a in arrays):
            skip()
        if _result_size(node, arrays) > self.limit:
            decline(f"the result has more than {self.limit} elements")
        results = _compute(node, arrays)
        if results is None:
            decline("the reference implementation refuses it")
        for output, array in zip(node.outputs, results, strict=True):
            if output.dtype is not None and ir.DataType.from_numpy(array.dtype) != output.dtype:
                decline(f"the reference implementation gives {array.dtype}, not {output.dtype}")
            if output.shape is not None and output.shape.is_static() and output.shape.numpy() != array.shape:
                decline(f"the reference implementation gives shape {array.shape}, not {output.shape}")
        for output, array in zip(node.outputs, results, strict=True):
            name, output.name = output.name, None
            at.replace(output, at.const(array, name or "folded"))
        return "computed from constants"

    def _large(self, value: ir.Value) -> bool:
        return value.const_value is not None and value.const_value.size > self.limit


def _transpose_lazily(node: ir.Node, weight: ir.Value, at: Rewriter) -> str:
    if len(weight.uses()) != 1:
        decline("the weight has other uses: folding would store it twice")
    if weight.graph is not at.graph:
        decline("the weight belongs to an outer graph")
    tensor = weight.const_value
    assert tensor is not None
    perm = node.attributes.get_ints("perm", tuple(reversed(range(len(tensor.shape)))))
    sizes = tensor.shape.numpy()
    shape = ir.Shape([sizes[axis] for axis in perm])
    output = node.outputs[0]
    name, output.name = output.name or "transposed", None
    lazy = ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(tensor.numpy().transpose(perm)), dtype=tensor.dtype),
        dtype=tensor.dtype,
        shape=shape,
        name=name,
    )
    at.replace(output, at.const(lazy, name))
    return "the weight is stored transposed"


def _result_size(node: ir.Node, arrays: Sequence[Array | None]) -> float:
    """Elements of the result of an operator that can enlarge, from its inputs' contents; 0 for the others."""
    values = [np.zeros(0) if a is None else a for a in arrays]
    if node.op_type == "Range":
        start, stop, step = (float(v.reshape(())) for v in values)
        return max(0.0, (stop - start) / step) if step else np.inf
    if node.op_type == "Tile":
        return float(values[0].size * np.prod(values[1].astype(float)))
    if node.op_type in ("Expand", "ConstantOfShape"):
        return float(np.prod(values[-1].astype(float))) * (values[0].size if node.op_type == "Expand" else 1)
    if node.op_type in BROADCASTS:
        try:
            return float(np.prod(np.broadcast_shapes(*(v.shape for v in values)), dtype=float))
        except ValueError:
            return np.inf
    return 0.0


def _compute(node: ir.Node, arrays: Sequence[Array | None]) -> list[Array] | None:
    """The node's outputs by the ONNX reference implementation, or None if it fails."""
    from onnx import ModelProto, helper
    from onnx.reference import ReferenceEvaluator

    opset = OPSET if node.graph is None else node.graph.opset_imports.get("", OPSET)
    proto = ir.serde.serialize_node(node)
    inputs = {
        name: helper.make_tensor_value_info(name, int(v.dtype or 0), None)
        for name, v in zip(proto.input, node.inputs, strict=True)
        if v is not None
    }
    outputs = [helper.make_empty_tensor_value_info(n) for n in proto.output]
    model: ModelProto = helper.make_model(
        helper.make_graph([proto], "fold", list(inputs.values()), outputs),
        opset_imports=[helper.make_opsetid("", opset)],
    )
    feeds = {n: a for n, a in zip(proto.input, arrays, strict=True) if a is not None}
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, feeds)
    except Exception:  # any refusal of the reference means: leave the node to the backend
        return None
    return [np.asarray(r) for r in results]
