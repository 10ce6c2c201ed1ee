"""Products with constant weights as linear layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.ir.constants import constant
from ....compiler.ir.rewrite import Rewriter
from ....compiler.reference import Array
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
        if x.dtype != ir.DataType.FLOAT:
            decline(f"its activations are {x.dtype}, the kernels take float32")
        if x.shape is None or len(x.shape) < 2:
            decline("its activations are not known to have two or more axes")
        if node.attributes.get_int("transA", 0):
            decline("it reads its activations transposed")
        alpha = node.attributes.get_float("alpha", 1.0)
        if alpha != 1:
            decline(f"it is multiplied by {alpha:g}")
        found = _weight(node, right)
        if found is None:
            skip()
        rows, columns = found.shape
        if x.shape[-1] != columns:
            decline(f"its activations are not known to have {columns} columns")
        bias, output = _bias(node, rows)
        if bias is not None and (bias.shape is None or list(bias.shape) != [rows]):
            bias = at.const(_row(bias, rows), f"{bias.name}.row")
        layer = Layer(x, ((found.rows(at), bias),))
        at.replace(output, layer.emit(at))
        return f"{rows} x {columns} weight" + (" with bias" if bias is not None else "")


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
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and (
            _row_size(bias, rows) is None or node.attributes.get_float("beta", 1.0) != 1
        ):
            decline("its bias is scaled, or not one constant per column")
        return bias, output
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


def _row(bias: ir.Value, rows: int) -> Array:
    array = constant(bias, limit=_LARGEST_BIAS)
    assert array is not None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), rows))
