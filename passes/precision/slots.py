"""Which inputs and outputs of a node change when it computes in 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...compiler.ir.signatures import Formal, signature

HALF = ir.DataType.FLOAT16


@dataclass(frozen=True, slots=True)
class Slots:
    """Positions that turn from float32 to 16 bits. Without ``outputs`` the node just reads any float."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def slots(node: ir.Node, opset: int, half: ir.DataType = HALF) -> Slots | None:
    """The float32 positions of ``node`` bound to a type that may be ``half``; None if nobody knows its types.

    An input that ONNX fixes to float32 (the scales of Resize, say) is in none of the positions.
    """
    known = signature(node.domain, node.op_type, opset)
    if known is None:
        return None
    variables: set[str] = set()
    inputs = []
    for index, value in enumerate(node.inputs):
        formal = _formal(known.inputs, index)
        if value is not None and value.dtype == ir.DataType.FLOAT and _may_be_half(formal, half):
            inputs.append(index)
            variables.add(formal.variable)
    outputs = [
        index
        for index, value in enumerate(node.outputs)
        if value.dtype == ir.DataType.FLOAT and _formal(known.outputs, index).variable in variables
    ]
    if inputs and node.op_type == "DequantizeLinear" and not node.attributes.get_int("output_dtype", 0):
        outputs = [0]  # ONNX gives the result a variable of its own, and says that it is the scale's type
    return Slots(tuple(inputs), tuple(outputs))


def in_half(node: ir.Node, at: Slots, opset: int, half: ir.DataType = HALF) -> ir.Node:
    """A detached copy of ``node`` with ``half`` at the positions ``at``, to ask a backend about."""

    def typed(value: ir.Value | None, index: int, positions: Sequence[int]) -> ir.Value | None:
        if value is None:
            return None
        kind = ir.TensorType(half) if index in positions else value.type
        return ir.Value(name=value.name, type=kind, shape=value.shape, const_value=value.const_value)

    outputs = [typed(v, i, at.outputs) for i, v in enumerate(node.outputs)]
    return ir.Node(
        node.domain,
        node.op_type,
        [typed(v, i, at.inputs) for i, v in enumerate(node.inputs)],
        [a for a in node.attributes.values() if isinstance(a, ir.Attr)],
        outputs=[v for v in outputs if v is not None],
        version=opset,
        name=node.name,
    )


def _formal(formals: Sequence[Formal], index: int) -> Formal:
    return formals[min(index, len(formals) - 1)]


def _may_be_half(formal: Formal, half: ir.DataType) -> bool:
    return f"tensor({half.name.lower()})" in formal.allowed if formal.allowed else "(" not in formal.variable
