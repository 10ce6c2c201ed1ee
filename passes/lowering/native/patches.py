"""Convolutions over patches that do not overlap, as linear layers: what a vision transformer begins with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.ir.constants import constant_tensor, is_constant
from ....compiler.ir.rewrite import Rewriter
from ...base import PassContext, RewritePass, decline, skip
from ..views import shape_constant
from .layer import Layer
from .weights import flattened


@dataclass(frozen=True)
class NativePatches(RewritePass):
    """Write a Conv that steps by the size of its kernel as a Linear over patches."""

    name: ClassVar[str] = "native-patches"
    optional: ClassVar[bool] = False
    anchors: ClassVar[frozenset[str]] = frozenset({"Conv"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Swap one convolution."""
        x, weight = node.inputs[:2]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        tensor = constant_tensor(weight)
        if (
            node.domain != ""
            or x is None
            or weight is None
            or x.shape is None
            or x.dtype != ir.DataType.FLOAT
        ):
            skip()
        if (
            tensor is None
            or tensor.dtype != ir.DataType.FLOAT
            or (bias is not None and not is_constant(bias))
        ):
            decline("its weights are not constant floats")
        rows, channels, *kernel = tensor.shape.numpy()
        sides, axes = list(x.shape)[2:], len(kernel)
        if (
            list(node.attributes.get_ints("strides", [1] * axes)) != kernel
            or any(n != 1 for n in node.attributes.get_ints("dilations", ()))
            or any(node.attributes.get_ints("pads", ()))
            or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
            or node.attributes.get_int("group", 1) != 1
        ):
            decline("its windows overlap, are padded or in groups")
        counts = [s // k for s, k in zip(sides, kernel, strict=True) if isinstance(s, int) and s % k == 0]
        if len(counts) != axes or x.shape[1] != channels:
            decline("its image is not known to be cut into whole patches")
        batch, patches = x.shape[0], math.prod(counts)
        split = [n for pair in zip(counts, kernel, strict=True) for n in pair]
        order = [0, *range(2, 2 + 2 * axes, 2), 1, *range(3, 3 + 2 * axes, 2)]
        cut = _reshaped(at, x, batch, [channels, *split])
        turned = at.op("Transpose", cut, perm=order)
        turned.type, turned.shape = x.type, ir.Shape([batch, *counts, channels, *kernel])
        columns = channels * math.prod(kernel)
        flat = _reshaped(at, turned, batch, [patches, columns])
        made = Layer(flat, ((flattened(weight, at), bias),)).emit(at)
        back = at.op("Transpose", made, perm=[0, 2, 1])
        back.type, back.shape = x.type, ir.Shape([batch, rows, patches])
        at.replace(node.outputs[0], _reshaped(at, back, batch, [rows, *counts]))
        return f"{rows} x {columns} weight over {patches} patches"


def _reshaped(at: Rewriter, x: ir.Value, batch: int | ir.SymbolicDim, shape: list[int]) -> ir.Value:
    made = at.op("Reshape", x, shape_constant(at, [0, *shape]))
    made.type, made.shape = x.type, ir.Shape([batch, *shape])
    return made
