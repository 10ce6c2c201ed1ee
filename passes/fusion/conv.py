"""What follows a convolution and only scales and shifts its channels: folded into its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, constant_tensor
from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from ..base import PassContext, RewritePass, decline, skip


@dataclass(frozen=True)
class FuseConvScale(RewritePass):
    """Fold BatchNormalization, or Mul, Div, Add, Sub with a value per channel, into the Conv before it."""

    name: ClassVar[str] = "fuse-conv-scale"
    anchors: ClassVar[frozenset[str]] = frozenset({"BatchNormalization", "Mul", "Div", "Add", "Sub"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Fold one node into its Conv."""
        if node.domain != "":
            skip()
        data = _convolved(node)
        conv = None if data is None else data.producer()
        if data is None or conv is None:
            skip()
        weight, bias = conv.inputs[1], conv.inputs[2] if len(conv.inputs) > 2 else None
        kernel = constant_tensor(weight)
        if weight is None or kernel is None or (bias is not None and constant_tensor(bias) is None):
            decline("the convolution's weight or bias is not constant")
        if data.is_graph_output() or len(data.uses()) > 1:
            decline("the convolution's own result is read too")
        if kernel.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
            decline(f"{kernel.dtype.name} weights would be rounded once more")
        channels = kernel.shape.numpy()[0]
        scale, shift = _scale_and_shift(node, data, channels)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            decline("the factors are not finite")

        if (scale != 1).any():
            if len(weight.uses()) > 1:
                decline("the weight is used elsewhere too: scaling would store it twice")
            weight = at.const(_scaled(kernel, scale), f"{weight.name}_scaled")
        start = np.zeros(channels) if bias is None else constant(bias, limit=None)
        assert start is not None
        folded = (start * scale + shift).astype(kernel.dtype.numpy())
        attributes = {name: attr.value for name, attr in conv.attributes.items()}
        result = at.op("Conv", conv.inputs[0], weight, at.const(folded, "folded_bias"), **attributes)
        at.replace(node.outputs[0], result)
        return f"{node.op_type} folded into Conv"


def _convolved(node: ir.Node) -> ir.Value | None:
    """The operand that a Conv computes; None if there is none, or the other one varies."""
    first_only = node.op_type in ("BatchNormalization", "Div", "Sub")
    for value in node.inputs[:1] if first_only else node.inputs:
        maker = None if value is None else value.producer()
        if maker is not None and maker.op_type == "Conv" and maker.domain == "":
            others = (v for v in node.inputs if v is not value)
            return value if all(constant_tensor(v) is not None for v in others) else None
    return None


def _scale_and_shift(node: ir.Node, data: ir.Value, channels: int) -> tuple[Array, Array]:
    """float64 factor and term per output channel."""
    if node.op_type == "BatchNormalization":
        if node.attributes.get_int("training_mode", 0) or any(o.uses() for o in node.outputs[1:]):
            decline("it normalises with the batch's own statistics")
        values = [constant(value, limit=None) for value in node.inputs[1:5]]
        gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in values)
        scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return scale, beta - mean * scale
    other = next(value for value in node.inputs if value is not data)
    operand = _per_channel(constant(other), data, channels)
    if operand is None:
        decline("the other operand is not one value per channel")
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op_type in ("Add", "Sub"):
        return ones, operand if node.op_type == "Add" else -operand
    with np.errstate(divide="ignore"):
        return operand if node.op_type == "Mul" else 1 / operand, zeros


def _per_channel(array: Array | None, data: ir.Value, channels: int) -> Array | None:
    """``array`` as float64[channels] if it broadcasts along the channels alone."""
    if array is None or data.shape is None or array.ndim > len(data.shape):
        return None
    if array.size == 1:
        return np.full(channels, array.reshape(()), np.float64)
    shape = (1,) * (len(data.shape) - array.ndim) + array.shape
    wanted = (1, channels) + (1,) * (len(data.shape) - 2)
    return array.astype(np.float64).reshape(-1) if shape == wanted else None


def _scaled(kernel: ir.TensorProtocol, scale: Array) -> ir.LazyTensor:
    """The kernel times ``scale`` per output channel, computed when the tensor is read."""

    def read() -> ir.TensorProtocol:
        array: np.ndarray[Any, Any] = kernel.numpy()
        factors = scale.reshape(-1, *(1,) * (array.ndim - 1))
        return ir.tensor((array.astype(np.float64) * factors).astype(array.dtype))

    return ir.LazyTensor(read, dtype=kernel.dtype, shape=ir.Shape(kernel.shape.numpy()), name="scaled")
