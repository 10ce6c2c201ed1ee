"""Products with constant weights as linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.ir.constants import constant, is_constant
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from .layer import Layer
from .weights import Right, is_weight, right_side

_LARGEST_BIAS = 1 << 24


@dataclass(frozen=True)
class NativeLinear(RewritePass):
    """Write products of activations with constant weights, and the bias behind them, as Linear."""

    name: ClassVar[str] = "native-linear"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset({"MatMul", "Gemm", "FusedMatMul"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Swap one product, and the Add of a bias, for a Linear."""
        x, right = node.inputs[:2]
        if x is None or right is None:
            skip()
        if x.dtype != ir.DataType.FLOAT and is_constant(right):
            decline(f"its activations are {x.dtype}, the kernels take float32")
        found = _weight(node, right)
        if found is None:
            skip()
        if x.shape is None or len(x.shape) < 2:
            decline("its activations are not known to have two or more axes")
        rows, columns = found.shape
        turned = node.attributes.get_int("transA", 0) != 0
        if x.shape[-2 if turned else -1] != columns:
            decline(f"its activations are not known to have {columns} columns")
        x = _turned(at, x) if turned else x
        bias, output = _bias(node, rows)
        alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
        inside = bias is not None and alpha == 1 == beta and _row_size(bias, rows) is not None
        weight = found.rows(at)
        made = Layer(x, ((weight, _row(at, bias, rows) if inside and bias is not None else None),)).emit(at)
        if alpha != 1:
            made = _like(made, at.op("Mul", made, at.const(np.array(alpha, np.float32), "alpha")))
        if bias is not None and not inside:
            scaled = bias if beta == 1 else at.op("Mul", bias, at.const(np.array(beta, np.float32), "beta"))
            made = _like(made, at.op("Add", made, scaled))
        at.replace(output, made)
        return f"{rows} x {columns} weight" + (" with bias" if bias is not None else "")


def _like(model: ir.Value, value: ir.Value) -> ir.Value:
    value.type, value.shape = model.type, model.shape
    return value


def _turned(at: Rewriter, x: ir.Value) -> ir.Value:
    assert x.shape is not None
    axes = list(range(len(x.shape)))
    axes[-2:] = axes[-1], axes[-2]
    made = at.op("Transpose", x, perm=axes)
    made.type, made.shape = x.type, ir.Shape([x.shape[axis] for axis in axes])
    return made


def _weight(node: ir.Node, right: ir.Value) -> Right | None:
    if not node.attributes.get_int("transB", 0):
        return right_side(right)
    if not is_weight(right) or right.shape is None:
        return None
    rows, columns = right.shape.numpy()
    return Right((rows, columns), lambda at: right)


def _bias(node: ir.Node, rows: int) -> tuple[ir.Value | None, ir.Value]:
    """The bias that is added to a product, and the value that is the sum."""
    output = node.outputs[0]
    if node.op_type == "Gemm":
        return (node.inputs[2] if len(node.inputs) > 2 else None), output
    users = output.consumers()
    add = users[0] if len(users) == 1 and not output.is_graph_output() else None
    if add is None or add.op_type != "Add" or add.domain != "" or add.graph is not node.graph:
        return None, output
    other = add.inputs[1] if add.inputs[0] is output else add.inputs[0]
    total = add.outputs[0]
    same = total.shape is not None and output.shape is not None and len(total.shape) == len(output.shape)
    if other is None or not same or _row_size(other, rows) is None:
        return None, output
    return other, total


def _row_size(bias: ir.Value, rows: int) -> int | None:
    """Elements of a constant that broadcasts along the last axis alone."""
    array = constant(bias, limit=_LARGEST_BIAS) if bias.dtype == ir.DataType.FLOAT else None
    if array is None or array.size not in (1, rows) or (array.ndim and array.shape[-1] != array.size):
        return None
    return int(array.size)


def _row(at: Rewriter, bias: ir.Value, rows: int) -> ir.Value:
    """The bias as [rows]."""
    if bias.shape is not None and list(bias.shape) == [rows]:
        return bias
    array = constant(bias, limit=_LARGEST_BIAS)
    assert array is not None
    return at.const(np.ascontiguousarray(np.broadcast_to(array.reshape(-1), rows)), f"{bias.name}.row")
