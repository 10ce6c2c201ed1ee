"""Linear layers as Gemm: the bias rides on the product instead of being a pass over memory of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.constants import is_constant
from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import Program
from ...base import PassContext, PassResult, RewritePass, skip
from ..views import shape_constant

DTYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
"""dtypes of the CPU Gemm kernel; the others would run as casts."""

POINTWISE = frozenset({"Gelu", "Relu", "Sigmoid", "Tanh", "Erf", "Softplus", "Elu", "LeakyRelu"})
"""Activations of one input that don't care for the rank."""


@dataclass(frozen=True)
class LinearToGemm(RewritePass):
    """Turn MatMul and Add of a bias over three or more dimensions into Gemm over rows.

    An Add of its own reads and writes the whole result again: 2–5 % of a linear layer at 128 tokens.
    """

    name: ClassVar[str] = "linear-to-gemm"
    anchors: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Try ``rewrite`` at every MatMul; its marks for shared nodes are gone afterwards."""
        result = super().run(program, context)
        for graph in program.graphs():
            for node in graph:
                node.metadata_props.pop(MARK, None)
        return result

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Swap one MatMul and its bias for Gemm."""
        x, weight, product = node.inputs[0], node.inputs[1], node.outputs[0]
        if node.domain != "" or x is None or weight is None or x.shape is None or len(x.shape) < 3:
            skip()
        if not is_constant(weight) or weight.shape is None or len(weight.shape) != 2 or x.dtype not in DTYPES:
            skip()
        add = _only_reader(product)
        if add is None or add.op_type != "Add" or add.domain != "":
            skip()
        bias = next((v for v in add.inputs if v is not product), None)
        rows, columns = weight.shape.numpy()
        if bias is None or not is_constant(bias) or bias.shape is None or list(bias.shape) != [columns]:
            skip()
        leading = x.shape[:-1]

        at = Rewriter(add)
        result = at.op("Gemm", flatten_rows(at, x, rows), weight, bias)
        result.type, result.shape = x.type, ir.Shape([None, columns])
        last = add.outputs[0]
        activation = _only_reader(last)
        if activation is not None and activation.op_type in POINTWISE and activation.domain == "":
            attributes = {name: attr.value for name, attr in activation.attributes.items()}
            result = at.op(activation.op_type, result, **attributes)
            result.type, result.shape = x.type, ir.Shape([None, columns])
            last = activation.outputs[0]
        target = _target(at, x, leading, columns)
        zero = None if is_constant(target) else 1  # a dimension may be empty
        at.replace(last, at.op("Reshape", result, target, allowzero=zero))
        return f"Gemm with {rows} x {columns} weight and bias"


def flatten_rows(at: Rewriter, x: ir.Value, columns: int) -> ir.Value:
    """``x`` as [rows, columns]; a Reshape that just gave it more dimensions is looked through."""
    node = x.producer()
    if node is not None and node.op_type == "Reshape" and node.domain == "":
        source = node.inputs[0]
        if (
            source is not None
            and source.shape is not None
            and len(source.shape) == 2
            and source.shape[1] == columns
        ):
            return source
    for usage in x.uses():
        if usage.node.metadata_props.get(MARK) == "rows" and usage.node.graph is at.graph:
            return usage.node.outputs[0]
    rows = at.op("Reshape", x, shape_constant(at, [-1, columns]))
    rows.type, rows.shape = x.type, ir.Shape([None, columns])
    _mark(rows, "rows")
    return rows


def _target(at: Rewriter, x: ir.Value, leading: Sequence[int | ir.SymbolicDim], columns: int) -> ir.Value:
    """The shape [*leading, columns]: constant if at most one dimension varies."""
    if sum(not isinstance(n, int) for n in leading) <= 1:
        return shape_constant(at, [*(n if isinstance(n, int) else -1 for n in leading), columns])
    named = all(isinstance(n, int) or n.value is not None for n in leading)
    key = f"{[str(n) for n in leading]}" if named else ""
    dims = _shared(at, key)
    if dims is None:
        dims = at.op("Shape", x, start=0, end=-1)
        dims.type, dims.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(leading)])
        _mark(dims, key)
    target = _shared(at, key and f"{key} {columns}")
    if target is None:
        target = at.op("Concat", dims, shape_constant(at, [columns]), axis=0)
        target.type, target.shape = dims.type, ir.Shape([len(leading) + 1])
        _mark(target, key and f"{key} {columns}")
    return target


def _shared(at: Rewriter, text: str) -> ir.Value | None:
    """The value of an earlier node marked ``text``."""
    earlier = itertools.takewhile(lambda n: n is not at.anchor, at.graph if text else ())
    return next((node.outputs[0] for node in earlier if node.metadata_props.get(MARK) == text), None)


def _mark(value: ir.Value, text: str) -> None:
    node = value.producer()
    if node is not None and text:
        node.metadata_props[MARK] = text


MARK = "miaotui.linear_to_gemm"
"""Marks, while the pass runs, the nodes that other layers over the same rows may share."""


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None
