"""Floating-point operations of standard operators, from static shapes. A multiply-add counts as two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from ..dialect.base import GELU, SOFTMAX, TRANSCENDENTAL, Flops, StaticShapes

VIEWS = frozenset(
    {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Shape", "Size", "Constant"}
)
"""Operators that move no data."""

MOVES = frozenset({
    "Transpose", "Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "Expand", "Tile", "Pad",
    "Cast", "Where", "ScatterND", "ScatterElements", "TensorScatter", "ConstantOfShape", "Range",
    "DepthToSpace", "SpaceToDepth", "Compress", "NonZero", "OneHot", "Trilu", "ReverseSequence", "EyeLike",
})  # fmt: skip
"""Operators that only move data."""

SELECTS = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
"""Operators that read no more of their first input than they write."""

_PER_ELEMENT = {
    **dict.fromkeys(("Exp", "Log", "Erf", "Tanh", "Sigmoid", "Softplus", "Sin", "Cos"), TRANSCENDENTAL),
    "Pow": TRANSCENDENTAL,
    **dict.fromkeys(("Gelu", "Mish", "Swish", "Elu", "Selu", "Celu"), GELU),
    "LayerNormalization": 8.0, "InstanceNormalization": 8.0, "GroupNormalization": 8.0,
    "RMSNormalization": 5.0, "BatchNormalization": 2.0, "LpNormalization": 3.0,
    "Softmax": SOFTMAX, "LogSoftmax": SOFTMAX, "RotaryEmbedding": 3.0,
}  # fmt: skip


def _matmul(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    return 2.0 * _size(outputs[0]) * (inputs[0] or (1,))[-1]


def _gemm(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    depth = (inputs[0] or (1, 1))[0 if attributes.get("transA") else 1]
    bias = len(inputs) > 2 and inputs[2] is not None
    return _size(outputs[0]) * (2.0 * depth + (1 if bias else 0))


def _conv(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    bias = len(inputs) > 2 and inputs[2] is not None
    return _size(outputs[0]) * (2.0 * _size((inputs[1] or (1,))[1:]) + (1 if bias else 0))


def _conv_transpose(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    return 2.0 * _size(inputs[0]) * _size((inputs[1] or (1,))[1:])


def _pool(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    return float(_size(outputs[0]) * math.prod(attributes.get("kernel_shape", (1,))))


def _attention(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    query, key, value = (inputs[i] or (1, 1, 1) for i in range(3))
    past = inputs[4] if len(inputs) > 4 else None
    if len(query) == 4:
        heads, rows, depth, width, keys = query[1], query[2], query[3], value[3], key[2]
    else:
        heads = int(attributes["q_num_heads"])
        rows, depth, keys = query[1], query[2] // heads, key[1]
        width = value[2] // int(attributes["kv_num_heads"])
    keys += past[2] if past else 0
    return query[0] * heads * rows * keys * (2.0 * (depth + width) + SOFTMAX)


def _recurrent(gates: int) -> Flops:
    def flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
        x, recurrence = inputs[0] or (1, 1, 1), inputs[2] or (1, 1, 1)
        directions, hidden = recurrence[0], recurrence[2]
        return x[0] * x[1] * directions * gates * (2.0 * hidden * (x[2] + hidden) + TRANSCENDENTAL * hidden)

    return flops


def _einsum(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    terms = attributes["equation"].replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=False):
        if "." not in term:
            sizes.update(zip(term, shape or (), strict=False))
    return 2.0 * math.prod(sizes.values())


_FLOPS: dict[str, Flops] = {
    "MatMul": _matmul, "MatMulInteger": _matmul, "QLinearMatMul": _matmul, "Gemm": _gemm, "Conv": _conv,
    "ConvInteger": _conv, "ConvTranspose": _conv_transpose, "Attention": _attention, "Einsum": _einsum,
    "LSTM": _recurrent(4), "GRU": _recurrent(3), "RNN": _recurrent(1),
    "MaxPool": _pool, "AveragePool": _pool, "LpPool": _pool,
}  # fmt: skip


def standard_flops(node: ir.Node, inputs: StaticShapes, outputs: StaticShapes) -> float:
    """Operations of a standard node; one per output element (per input element if it reduces) by default."""
    if node.op_type in VIEWS or node.op_type in MOVES:
        return 0.0
    if node.op_type in _FLOPS:
        attributes = {a.name: a.value for a in node.attributes.values() if not a.is_ref()}
        return _FLOPS[node.op_type](inputs, outputs, attributes)
    return _PER_ELEMENT.get(node.op_type, 1.0) * max(_size(outputs[0]), _size(inputs[0] if inputs else None))


def _size(shape: Sequence[int] | None) -> int:
    return 0 if shape is None else math.prod(shape)
