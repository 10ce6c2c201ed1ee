"""Products of quantized activations and weights, in ONNX Runtime's integer kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.ir.constants import constant, constant_tensor, is_constant
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip


@dataclass(frozen=True)
class UseIntegerKernels(RewritePass):
    """Multiply codes by MatMulIntegerToFloat where both operands of a MatMul are dequantized.

    A scale for each row of activations, which the kernel does not know, multiplies its result. With one scale
    for all of them the bias rides on the product.
    """

    name: ClassVar[str] = "integer-kernels"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset({"MatMul"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Swap one MatMul and what dequantizes its operands."""
        left, right = (_dequantized(value) for value in node.inputs[:2])
        if node.domain != "" or left is None or right is None:
            skip()
        codes, scale, zero = left
        weight, steps, weight_zero = right
        tensor = constant_tensor(weight)
        if tensor is None or len(tensor.shape) != 2 or not is_constant(steps):
            skip()
        if _by_block(node.inputs[0]) or _by_block(node.inputs[1]):
            skip()
        if context.target.device != "cpu":
            decline("quantized for the CPU's kernels only")
        if tensor.dtype != ir.DataType.INT8 or codes.dtype != ir.DataType.UINT8:
            decline(f"{codes.dtype} times {tensor.dtype}: the fast kernel takes UINT8 times INT8")
        columns = tensor.shape.numpy()[1]
        if steps.shape is None or list(steps.shape) not in ([], [1], [columns]) or weight_zero is not None:
            decline("the weight has no scale per column around zero")
        by_row = scale.shape is not None and len(scale.shape) == 1 and scale.shape[0] != 1
        if by_row and _axis(node.inputs[0]) != 0:
            decline("the activation has a scale per column")
        if not by_row:
            return self._whole(node, codes, scale, zero, weight, steps)
        known = _same_zero(zero)
        if codes.shape is None or len(codes.shape) != 2 or known is None:
            decline("the activation's rows have zero points of their own")
        one = at.const(np.array(1, np.float32), "one")
        zero = at.const(np.array(known, np.uint8), "zero_point")
        plain = at.op("MatMulIntegerToFloat", codes, weight, one, steps, zero, domain="com.microsoft")
        plain.type, plain.shape = ir.TensorType(ir.DataType.FLOAT), node.outputs[0].shape
        wide = at.op("Unsqueeze", scale, at.const(np.array([1]), "axis"))
        wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([codes.shape[0], 1])
        at.replace(node.outputs[0], at.op("Mul", plain, wide))
        return f"{tensor.shape} codes, scaled by row"

    def _whole(
        self,
        node: ir.Node,
        codes: ir.Value,
        scale: ir.Value,
        zero: ir.Value | None,
        weight: ir.Value,
        steps: ir.Value,
    ) -> str:
        output = node.outputs[0]
        uses = list(output.uses())
        add = uses[0].node if len(uses) == 1 and not output.is_graph_output() else None
        bias, at = None, Rewriter(node)
        if add is not None and add.op_type == "Add" and add.domain == "":
            other = next((v for v in add.inputs if v is not output), None)
            width = None if weight.shape is None else weight.shape[1]
            shape = None if other is None or not is_constant(other) else other.shape
            if shape is not None and list(shape) == [width]:
                bias, output, at = other, add.outputs[0], Rewriter(add)
        inputs = (codes, weight, scale, steps, zero, None, bias)
        last = max(index for index, value in enumerate(inputs) if value is not None)
        made = at.op("MatMulIntegerToFloat", *inputs[: last + 1], domain="com.microsoft")
        at.replace(output, made)
        return "one product of codes" + (" with its bias" if bias is not None else "")


def _dequantized(value: ir.Value | None) -> tuple[ir.Value, ir.Value, ir.Value | None] | None:
    """Codes, scale and zero point that ``value`` is made from."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.domain != "":
        return None
    codes, scale = node.inputs[:2]
    if codes is None or scale is None or scale.dtype != ir.DataType.FLOAT:
        return None
    return codes, scale, node.inputs[2] if len(node.inputs) > 2 else None


def _axis(value: ir.Value | None) -> int:
    node = None if value is None else value.producer()
    return 1 if node is None else node.attributes.get_int("axis", 1)


def _by_block(value: ir.Value | None) -> bool:
    node = None if value is None else value.producer()
    return node is not None and node.attributes.get_int("block_size", 0) != 0


def _same_zero(zero: ir.Value | None) -> int | None:
    """The zero point that all rows have; None if that is not known."""
    if zero is None:
        return 0
    node = zero.producer()
    if node is not None and node.op_type == "Expand" and node.domain == "":
        zero = node.inputs[0]
    array = constant(zero)
    return int(array.flat[0]) if array is not None and array.size and (array == array.flat[0]).all() else None
