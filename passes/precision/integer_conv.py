"""Convolutions and what lies between them in 8 bits: QuantizeLinear and DequantizeLinear around each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant, constant_tensor, is_constant
from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from ..base import NoMatch, Note, decline, skip
from ..histograms import Histogram, RangeRule, Scale
from .integer_linear import FLOAT, pair

SAME_SCALE = frozenset({"MaxPool"})
"""Operators that choose among values: their results have their operand's scale."""

BETWEEN = SAME_SCALE | {"Add", "GlobalAveragePool", "AveragePool", "Concat"}
"""Operators with integer kernels that follow where all they read is in 8 bits already."""

_LARGEST = 2**31 - 1


@dataclass(slots=True)
class ConvWork:
    """One graph. ``greatest``: code of a weight; ``keep``: parts of weights' names that are left alone."""

    histograms: Mapping[str, Histogram]
    rule: RangeRule
    greatest: int
    keep: tuple[str, ...]
    scales: dict[ir.Value, Scale] = field(default_factory=dict)
    made: list[ir.Node] = field(default_factory=list)
    hits: list[Note] = field(default_factory=list)
    declined: list[Note] = field(default_factory=list)

    def run(self, graph: ir.Graph) -> None:
        """Every convolution, and the operators of BETWEEN behind them, producers first."""
        for node in tuple(graph):
            if node.domain != "" or node.graph is None:
                continue
            try:
                if node.op_type in ("Conv", "ConvTranspose"):
                    text = self._convolution(node)
                elif node.op_type in BETWEEN:
                    text = self._between(node)
                else:
                    continue
            except NoMatch as left:
                if left.reason:
                    self.declined.append(Note(str(node.name), left.reason))
                continue
            self.hits.append(Note(str(node.name), text))

    def _convolution(self, node: ir.Node) -> str:
        x, weight = node.inputs[0], node.inputs[1]
        tensor = constant_tensor(weight)
        if x is None or weight is None or (x in self.scales and _is_quantized(weight)):
            skip()
        if node.op_type != "Conv":
            decline(f"there is no integer kernel for {node.op_type}")
        if tensor is None or tensor.dtype != FLOAT or x.dtype != FLOAT:
            skip()
        if any(part in str(weight.name) for part in self.keep):
            decline("is to be kept")
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        shift = None if bias is None else constant(bias, limit=None)
        if bias is not None and shift is None:
            decline("its bias is computed")
        tail = _tail(node)
        result = self._measured(tail)
        read = self._read(x)
        at = Rewriter(node)
        codes, steps = rounded_channels(tensor.numpy(), self.greatest)
        name = str(weight.name)
        kernel = at.op(
            "DequantizeLinear", at.const(codes, f"{name}.data"), at.const(steps, f"{name}.scale"), axis=0
        )
        kernel.type, kernel.shape = ir.TensorType(FLOAT), weight.shape
        node.replace_input_with(0, read)
        node.replace_input_with(1, kernel)
        if bias is not None and shift is not None:
            node.replace_input_with(2, _bias(bias, shift, steps * np.float32(self.scales[read].step), at))
        self.made += at.made
        self._write(tail, result)
        return f"{codes.shape[0]} channels in 8 bits, activations by steps of {self.scales[read].step:.3g}"

    def _between(self, node: ir.Node) -> str:
        varying = [value for value in node.inputs if value is not None]
        if not varying or any(value not in self.scales for value in varying) or len(node.outputs) > 1:
            skip()
        first = self.scales[varying[0]]
        tail = node.outputs[0] if node.op_type in SAME_SCALE else _tail(node)
        readers = {use.node.op_type for use in tail.uses()}
        if readers == {"QuantizeLinear"}:
            skip()
        result = first if node.op_type in SAME_SCALE else self._measured(tail)
        self._write(tail, result)
        return f"{node.op_type} of 8-bit codes"

    def _measured(self, value: ir.Value) -> Scale:
        found = self.histograms.get(str(value.name))
        return decline(f"{value.name} was not measured") if found is None else self.rule.scale(found)

    def _read(self, x: ir.Value) -> ir.Value:
        """``x`` in 8 bits, where a convolution reads it."""
        if x in self.scales:
            return x
        known = next((u.node for u in x.uses() if u.node.op_type == "QuantizeLinear"), None)
        if known is not None:
            behind = [use.node.outputs[0] for use in known.outputs[0].uses()]
            if behind and behind[0] in self.scales:
                return behind[0]
        scale = self._measured(x)
        at = Rewriter(_first_reader(x))
        made = pair(x, scale, at)
        self.made += at.made
        self.scales[made] = scale
        return made

    def _write(self, value: ir.Value, scale: Scale) -> None:
        """Let every reader of ``value`` read it in 8 bits; as an output of the model it stays as it is."""
        uses = value.uses()
        if not uses:
            return
        at = Rewriter(_first_reader(value))
        made = pair(value, scale, at)
        self.made += at.made
        self.scales[made] = scale
        for use in uses:
            use.node.replace_input_with(use.idx, made)


def to_measure(graph: ir.Graph) -> list[str]:
    """Names of the values that may get a scale."""
    found: list[str] = []
    for node in graph:
        if node.op_type in BETWEEN or node.op_type == "Conv":
            values = (*node.inputs, node.outputs[0], _tail(node))
            found += [
                str(v.name) for v in values if v is not None and v.dtype == FLOAT and not is_constant(v)
            ]
    return found


def rounded_channels(array: Array, greatest: int) -> tuple[Array, Array]:
    """int8 codes and a step (float32) for each row of the leading axis, around zero."""
    flat = array.reshape(len(array), -1).astype(np.float32)
    steps = np.maximum(np.abs(flat).max(1, initial=0) / greatest, 1e-12).astype(np.float32)
    codes = np.clip(np.rint(flat / steps[:, None]), -greatest, greatest)
    return codes.astype(np.int8).reshape(array.shape), steps


def _bias(bias: ir.Value, shift: Array, steps: Array, at: Rewriter) -> ir.Value:
    codes = np.clip(np.rint(shift.astype(np.float64) / steps), -_LARGEST, _LARGEST).astype(np.int32)
    inputs = at.const(codes, f"{bias.name}.data"), at.const(steps.astype(np.float32), f"{bias.name}.scale")
    made = at.op("DequantizeLinear", *inputs, axis=0)
    made.type, made.shape = ir.TensorType(FLOAT), bias.shape
    return made


def _tail(node: ir.Node) -> ir.Value:
    """The result behind a Relu or Clip that alone reads it: the integer kernel clamps by itself."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output():
        after: ir.Node = uses[0].node
        if after.op_type in ("Relu", "Clip") and after.domain == "" and uses[0].idx == 0:
            return after.outputs[0]
    return output


def _first_reader(value: ir.Value) -> ir.Node:
    readers = {use.node for use in value.uses()}
    graph = next(iter(readers)).graph
    assert graph is not None
    return next(node for node in graph if node in readers)


def _is_quantized(weight: ir.Value) -> bool:
    node = weight.producer()
    return node is not None and node.op_type == "DequantizeLinear"
