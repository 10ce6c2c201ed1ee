"""Products of 8-bit integers: com.microsoft MatMulIntegerToFloat."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..reference import Array
from .base import Inferred, OpSchema, dtype_of, parameters, shape_of


def matmul_integer_to_float(
    a: Array,
    b: Array,
    a_scale: Array,
    b_scale: Array,
    a_zero: Array | None = None,
    b_zero: Array | None = None,
    bias: Array | None = None,
) -> tuple[Array]:
    """``(A - a_zero) * a_scale @ ((B - b_zero) * b_scale) + bias``; A: [..., K], B: [K, N], scales of B by
    column."""
    left = a.astype(np.int64) - (0 if a_zero is None else a_zero.astype(np.int64))
    right = b.astype(np.int64) - (0 if b_zero is None else b_zero.astype(np.int64))
    y = np.matmul(left, right).astype(np.float64) * (a_scale.astype(np.float64) * b_scale.astype(np.float64))
    return ((y if bias is None else y + bias).astype(a_scale.dtype),)


def _infer(node: ir.Node) -> Sequence[Inferred]:
    a, b = shape_of(node, 0), shape_of(node, 1)
    shape = None if a is None or b is None or len(b) != 2 else ir.Shape([*list(a)[:-1], b[1]])
    return ((dtype_of(node, 2), shape),)


SCHEMAS = (
    OpSchema(
        "MatMulIntegerToFloat",
        parameters("A:T1 B:T2 a_scale:T3 b_scale:T3 a_zero_point?:T1 b_zero_point?:T2 bias?:T3"),
        parameters("Y:T3"),
        _infer,
        matmul_integer_to_float,
        flops=lambda inputs, outputs, attributes: (
            2.0 * math.prod(inputs[0] or ()) * ((inputs[1] or (1, 1))[-1])
        ),
    ),
)
