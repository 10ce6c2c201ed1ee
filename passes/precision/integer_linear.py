"""Linear layers as products of 8-bit integers, in standard operators: activations and weight quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor, scalar
from ...compiler.ir.quantized import BlockedWeight
from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from ..base import decline
from ..histograms import Scale

FLOAT, CODES = ir.DataType.FLOAT, ir.DataType.UINT8
MIDDLE = 128
"""Zero point of activations that may have either sign."""

GELU_ZERO = 24
"""Zero point behind Gelu and SiLU, whose results end at -0.17 and -0.28: most codes are for what is above."""

_POSITIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Exp", "Abs", "HardSigmoid", "Sqrt", "Softplus"})
_VIEWS = frozenset({"Reshape", "Transpose", "Flatten", "Identity", "Squeeze", "Unsqueeze", "Dropout"})
_TINY = np.float32(1e-30)


def zero_point(value: ir.Value) -> int:
    """The code of zero for ``value``, known by the operator that computes it."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None:
        return MIDDLE
    if node.op_type in _POSITIVE:
        return 0
    if node.op_type == "Clip":
        least = scalar(node.inputs[1]) if len(node.inputs) > 1 else None
        return 0 if least is not None and least >= 0 else MIDDLE
    return GELU_ZERO if node.op_type in ("Gelu", "QuickGelu", "Swish") else MIDDLE


@dataclass(slots=True)
class Emitter:
    """Writes the quantized layers of one graph; what several layers read is quantized once."""

    graph: ir.Graph
    quantized: dict[tuple[ir.Value, str], ir.Value] = field(default_factory=dict)
    dims: dict[ir.Value, ir.Value] = field(default_factory=dict)
    made: list[ir.Node] = field(default_factory=list)

    def layer(
        self,
        node: ir.Node,
        weight: BlockedWeight,
        name: str,
        form: str,
        scale: Scale | None = None,
        factors: Array | None = None,
    ) -> None:
        """Swap MatMul or Gemm ``node`` for one over codes. ``form``: ``row``, ``tensor`` or ``static``.

        ``factors``: what channels of the activation are divided by; the weight has them already.
        """
        x = node.inputs[0]
        assert x is not None and x.shape is not None
        at = Rewriter(node)
        rows, columns = weight.shape
        read = self._activation(x, columns, form, scale, factors, at)
        codes = at.const(_turned(weight.data), f"{name}.data")
        steps = at.const(_flat(weight.scale), f"{name}.scale")
        wide = at.op("DequantizeLinear", codes, steps, axis=1)
        wide.type, wide.shape = ir.TensorType(FLOAT), ir.Shape([columns, rows])
        result = at.op("MatMul", read, wide)
        result.type, result.shape = ir.TensorType(FLOAT), ir.Shape([*list(read.shape or ())[:-1], rows])
        if len(x.shape) != len(result.shape or ()):
            result = self._restored(x, result, rows, at)
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if bias is not None:
            result = at.op("Add", result, bias)
        at.replace(node.outputs[0], result)
        self.made += at.made

    def _activation(
        self,
        x: ir.Value,
        columns: int,
        form: str,
        scale: Scale | None,
        factors: Array | None,
        at: Rewriter,
    ) -> ir.Value:
        """``x`` rounded to 8 bits and back: by row as [rows, columns], else in its own shape."""
        key = x, form
        if key in self.quantized:
            return self.quantized[key]
        at, zero, whole = self._behind(x, at), zero_point(x), x
        if factors is not None:
            whole = at.op("Mul", x, at.const((1 / factors).astype(np.float32), f"{x.name}.even"))
            whole.type, whole.shape = x.type, x.shape
        if form == "row":
            made = _by_row(_rows(whole, columns, at), zero, at)
        elif form == "tensor":
            codes, step, zeros = at.ops("DynamicQuantizeLinear", whole, outputs=3)
            codes.type, codes.shape = ir.TensorType(CODES), x.shape
            step.type, step.shape = ir.TensorType(FLOAT), ir.Shape([])
            zeros.type, zeros.shape = ir.TensorType(CODES), ir.Shape([])
            made = at.op("DequantizeLinear", codes, step, zeros)
            made.type, made.shape = ir.TensorType(FLOAT), x.shape
        else:
            assert scale is not None
            made = pair(x, scale, at)
        self.made += at.made
        self.quantized[key] = made
        return made

    def _behind(self, x: ir.Value, at: Rewriter) -> Rewriter:
        """A place before every reader of ``x`` in this graph."""
        readers = {use.node for use in x.uses()}
        return Rewriter(next((node for node in self.graph if node in readers), at.anchor))

    def _restored(self, x: ir.Value, result: ir.Value, columns: int, at: Rewriter) -> ir.Value:
        """[rows, columns] with the leading dimensions of ``x``."""
        assert x.shape is not None
        leading = list(x.shape)[:-1]
        known = [n if isinstance(n, int) else -1 for n in leading]
        if known.count(-1) <= 1:
            target, zero = at.const(np.array([*known, columns]), "shape"), None
        else:
            if x not in self.dims:
                before = self._behind(x, at)
                self.dims[x] = before.op("Shape", x, start=0, end=-1)
                self.dims[x].type = ir.TensorType(ir.DataType.INT64)
                self.dims[x].shape = ir.Shape([len(leading)])
                self.made += before.made
            target, zero = at.op("Concat", self.dims[x], at.const(np.array([columns]), "width"), axis=0), 1
            target.type, target.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(leading) + 1])
        made = at.op("Reshape", result, target, allowzero=zero)
        made.type, made.shape = result.type, ir.Shape([*leading, columns])
        return made


def pair(x: ir.Value, scale: Scale, at: Rewriter) -> ir.Value:
    """``x`` through QuantizeLinear and DequantizeLinear with a constant scale."""
    step = at.const(np.array(scale.step, np.float32), f"{x.name}.step")
    zero = at.const(np.array(scale.zero, np.uint8), f"{x.name}.zero")
    codes = at.op("QuantizeLinear", x, step, zero)
    codes.type, codes.shape = ir.TensorType(CODES), x.shape
    made = at.op("DequantizeLinear", codes, step, zero)
    made.type, made.shape = ir.TensorType(FLOAT), x.shape
    return made


def _by_row(flat: ir.Value, zero: int, at: Rewriter) -> ir.Value:
    """Each row by a scale of its own: the least that holds its greatest and its least value."""
    assert flat.shape is not None
    rows = ir.Shape([flat.shape[0]])

    def per_row(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        value = at.op(op_type, *inputs, **attributes)
        value.type, value.shape = ir.TensorType(FLOAT), rows
        return value

    last = at.const(np.array([1]), "last")
    high = per_row("ReduceMax", flat, last, keepdims=0)
    above = per_row("Mul", high, at.const(np.array(1 / (255 - zero), np.float32), "above"))
    steps = [above, at.const(np.array(_TINY), "tiny")]
    if zero:
        low = per_row("ReduceMin", flat, last, keepdims=0)
        steps.append(per_row("Mul", low, at.const(np.array(-1 / zero, np.float32), "below")))
    scale = per_row("Max", *steps)
    inputs = [scale]
    if zero:
        count = at.op("Shape", scale)
        count.type, count.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
        zeros = at.op("Expand", at.const(np.array([zero], np.uint8), "zero"), count)
        zeros.type, zeros.shape = ir.TensorType(CODES), rows
        inputs.append(zeros)
    codes = at.op("QuantizeLinear", flat, *inputs, axis=0)
    codes.type, codes.shape = ir.TensorType(CODES), flat.shape
    made = at.op("DequantizeLinear", codes, *inputs, axis=0)
    made.type, made.shape = ir.TensorType(FLOAT), flat.shape
    return made


def _rows(x: ir.Value, columns: int, at: Rewriter) -> ir.Value:
    assert x.shape is not None
    if len(x.shape) == 2:
        return x
    flat = at.op("Reshape", x, at.const(np.array([-1, columns]), "rows"))
    flat.type, flat.shape = x.type, ir.Shape([None, columns])
    return flat


def readers_reason(nodes: Sequence[ir.Node]) -> None:
    """Decline layers that a product of integers can't stand for. Raises: NoMatch with the reason."""
    for node in nodes:
        x = node.inputs[0]
        if x is None or x.dtype != FLOAT or x.shape is None or len(x.shape) < 2:
            decline("the activation is not known to be a float32 matrix")
        if constant_tensor(x) is not None:
            decline("both operands are constant")
        factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
        if factors != [1, 1]:
            decline("Gemm scales its result")


def _turned(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    rows, columns = tensor.shape.numpy()
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(tensor.numpy().T)),
        dtype=tensor.dtype,
        shape=ir.Shape([columns, rows]),
    )


def _flat(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    return ir.LazyTensor(
        lambda: ir.Tensor(np.ascontiguousarray(tensor.numpy().reshape(-1))),
        dtype=tensor.dtype,
        shape=ir.Shape([tensor.size]),
    )
