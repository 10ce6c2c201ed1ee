"""Scales and shifts per channel after a convolution go into its weight and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, constant_tensor
from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from ..base import PassContext, decline, skip
from .match import RaisingPass, Region, made_by, operands, rank, size

PRODUCTS = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True)
class FoldConvAffine(RaisingPass):
    """Fold BatchNormalization, and Mul and Add by channel constants, into the Conv or Gemm before them.

    The new weight is a lazy tensor: it is computed, one weight at a time, when the program is written.
    """

    name: ClassVar[str] = "fold-conv-affine"
    anchors: ClassVar[frozenset[str]] = frozenset({"BatchNormalization", "Mul", "Div", "Add", "Sub"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Match the product, then the affine map after it."""
        x = _input(node)
        product = made_by(x, *PRODUCTS)
        channels = size(x, 1)
        if product is None or x is None or channels is None:
            skip()
        factors = (
            _normalization(node, channels)
            if node.op_type == "BatchNormalization"
            else _arithmetic(node, x, channels)
        )
        if factors is None:
            skip()
        weight, bias = _parameters(product, channels)
        Region(product, node).close(node.outputs[0])
        scale, shift = factors
        source = product.inputs[1]
        if not np.all(scale == 1):
            source = at.const(_scaled(product, weight, scale), f"{weight.name or product.name}_scaled")
        dtype = weight.dtype.numpy()
        shifted = at.const((bias * scale + shift).astype(dtype), f"{product.name}_bias")
        attributes = {name: a.value for name, a in product.attributes.items()}
        at.replace(node.outputs[0], at.op(product.op_type, product.inputs[0], source, shifted, **attributes))
        return f"folded into {product.name}"


def _input(node: ir.Node) -> ir.Value | None:
    if node.op_type in ("Mul", "Add"):
        return next((a for a, b in operands(node) if constant_tensor(b) is not None), None)
    return node.inputs[0]


def _parameters(product: ir.Node, channels: int) -> tuple[ir.TensorProtocol, Array]:
    """Weight and float64 bias of a product that can take a scale. Raises: NoMatch if it can't."""
    source = product.inputs[1]
    weight = constant_tensor(source)
    if source is None or weight is None:
        decline("the weight is not constant")
    given = product.inputs[2] if len(product.inputs) > 2 else None
    bias = np.zeros(channels) if given is None else constant(given, None)
    if bias is None or bias.shape != (channels,):
        decline("the bias is not a constant per channel")
    if product.op_type == "ConvTranspose" and product.attributes.get_int("group", 1) != 1:
        decline("a grouped ConvTranspose keeps its scale")
    numbers = [product.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if product.op_type == "Gemm" and numbers != [1.0, 1.0]:
        decline("alpha or beta of the Gemm is not 1")
    if len(source.uses()) > 1:
        decline("the weight has other uses: folding would store it twice")
    if weight.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        decline(f"the weight is {weight.dtype}")
    return weight, bias.astype(np.float64)


def _normalization(node: ir.Node, channels: int) -> tuple[Array, Array] | None:
    """Scale and shift of an inference BatchNormalization."""
    if node.attributes.get_int("training_mode", 0) or any(o.uses() for o in node.outputs[1:]):
        return None
    found = [constant(v, None) for v in node.inputs[1:5]]
    if any(a is None or a.shape != (channels,) for a in found):
        decline("a statistic is not constant")
    gamma, beta, mean, variance = (a.astype(np.float64) for a in found if a is not None)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return scale, beta - mean * scale


def _arithmetic(node: ir.Node, x: ir.Value, channels: int) -> tuple[Array, Array] | None:
    """Scale and shift of a Mul, Div, Add or Sub by a constant per channel."""
    other = next((v for v in node.inputs if v is not x), None)
    array = constant(other)
    count = rank(x)
    if node.inputs[1] is x and node.op_type in ("Div", "Sub"):
        return None
    if array is None or count is None or array.dtype.kind != "f":
        return None
    if array.size != 1 and (array.ndim < count - 1 or array.shape[-(count - 1)] != array.size):
        return None
    if array.size not in (1, channels) or array.ndim > count:
        return None
    values = np.broadcast_to(array.astype(np.float64).ravel(), (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    match node.op_type:
        case "Mul":
            return values, zero
        case "Div":
            return (1 / values, zero) if np.all(values != 0) else None
        case "Add":
            return one, values
    return one, -values


def _scaled(product: ir.Node, weight: ir.TensorProtocol, scale: Array) -> ir.LazyTensor:
    """``weight`` times ``scale`` along its output channels, computed when it is read."""
    axis = 0
    if product.op_type == "ConvTranspose" or (
        product.op_type == "Gemm" and not product.attributes.get_int("transB", 0)
    ):
        axis = 1
    shape = weight.shape.numpy()
    sides = [1] * len(shape)
    sides[axis] = -1
    dtype = weight.dtype

    def compute() -> ir.TensorProtocol:
        wide = np.promote_types(dtype.numpy(), np.float32)
        array = weight.numpy() * scale.reshape(sides).astype(wide)
        return ir.Tensor(array.astype(dtype.numpy()), dtype=dtype)

    return ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(shape), name=weight.name)
