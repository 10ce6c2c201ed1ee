"""Matrix products with extras: com.microsoft FusedMatMul, FusedGemm, MatMulNBits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..errors import UnsupportedError
from ..reference import Array
from .activation import ACTIVATION, activate
from .base import Inferred, OpSchema, StaticShapes, dtype_of, integer, number, parameters, shape_of
from .gather import unpacked
from .standard import infer_like


def fused_matmul(a: Array, b: Array, *, alpha: float, **transposed: int) -> tuple[Array]:
    """``alpha * A @ B``, either transposed; ``transBatch`` moves a leading row axis behind the batch axes."""
    a = np.moveaxis(a, 0, -2) if transposed["transBatchA"] else a
    b = np.moveaxis(b, 0, -2) if transposed["transBatchB"] else b
    a = a.swapaxes(-1, -2) if transposed["transA"] and a.ndim > 1 else a
    b = b.swapaxes(-1, -2) if transposed["transB"] and b.ndim > 1 else b
    return ((alpha * np.matmul(a, b)).astype(a.dtype),)


def _fused_matmul_infer(node: ir.Node) -> Sequence[Inferred]:
    a = _operand(node, 0, "transA", "transBatchA")
    b = _operand(node, 1, "transB", "transBatchB")
    dtype = dtype_of(node, 0)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return ((dtype, None),)
    batch: list[int | ir.SymbolicDim] = []
    for i in range(max(len(a), len(b)) - 2, 0, -1):
        x = a[-2 - i] if len(a) >= 2 + i else 1
        y = b[-2 - i] if len(b) >= 2 + i else 1
        if x == y or y == 1 or (isinstance(x, int) and x != 1):
            batch.append(x)
        else:
            batch.append(y if x == 1 or isinstance(y, int) else ir.SymbolicDim(None))
    return ((dtype, ir.Shape([*batch, a[-2], b[-1]])),)


def _operand(node: ir.Node, index: int, transpose: str, batch: str) -> list[int | ir.SymbolicDim] | None:
    shape = shape_of(node, index)
    if shape is None:
        return None
    dims = list(shape)
    if node.attributes.get_int(batch, 0) and len(dims) > 2:
        dims.insert(len(dims) - 2, dims.pop(0))
    if node.attributes.get_int(transpose, 0) and len(dims) > 1:
        dims[-1], dims[-2] = dims[-2], dims[-1]
    return dims


def _matmul_flops(inputs: StaticShapes, outputs: StaticShapes, attributes: Mapping[str, Any]) -> float:
    a = inputs[0] or (1, 1)
    depth = a[-2] if attributes["transA"] and len(a) > 1 else a[-1]
    return 2.0 * math.prod(outputs[0] or ()) * depth


def fused_gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float,
    beta: float,
    activation: str | None,
    activation_alpha: float | None,
    activation_beta: float | None,
    **options: Any,
) -> tuple[Array]:
    """``activation(alpha * A @ B + beta * C)`` of matrices."""
    product = alpha * np.matmul(a.T if options["transA"] else a, b.T if options["transB"] else b)
    total = product if c is None else product + beta * c
    scalars = [v for v in (activation_alpha, activation_beta) if v is not None]
    return (activate(total, activation, scalars).astype(a.dtype),)


def matmul_nbits(
    a: Array,
    b: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: Array | None = None,
    *,
    K: int,  # noqa: N803
    N: int,  # noqa: N803
    bits: int,
    block_size: int,
    accuracy_level: int,
    weight_prepacked: int,
) -> tuple[Array]:
    """``A @ dequantize(B).T + bias``; A: [..., K], B: uint8[N, K/block, block*bits/8], lowest bits first."""
    if g_idx is not None or weight_prepacked:
        raise UnsupportedError("MatMulNBits", "g_idx and prepacked weights have no reference semantics")
    blocks = -(-K // block_size)
    codes = unpacked(b.reshape(N, blocks, -1), bits)[..., :block_size]
    if zero_points is None:
        zeros: Array = np.full((N, blocks), 1 << (bits - 1), np.float64)
    elif zero_points.dtype == np.uint8:
        zeros = unpacked(zero_points.reshape(N, -1), bits)[:, :blocks]
    else:
        zeros = zero_points.reshape(N, blocks)
    weight = (codes - zeros[..., None].astype(np.float64)) * scales.reshape(N, blocks, 1).astype(np.float64)
    y = a.astype(np.float64) @ weight.reshape(N, -1)[:, :K].T
    return ((y if bias is None else y + bias).astype(a.dtype),)


def _nbits_infer(node: ir.Node) -> Sequence[Inferred]:
    shape = shape_of(node, 0)
    columns = node.attributes.get_int("N", 0)
    return ((dtype_of(node, 0), None if shape is None else ir.Shape([*shape[:-1], columns])),)


SCHEMAS = (
    OpSchema(
        "FusedMatMul",
        parameters("A:T B:T"),
        parameters("Y:T"),
        _fused_matmul_infer,
        fused_matmul,
        {
            "alpha": number(1.0),
            "transA": integer(0),
            "transB": integer(0),
            "transBatchA": integer(0),
            "transBatchB": integer(0),
        },
        _matmul_flops,
    ),
    OpSchema(
        "FusedGemm",
        parameters("A:T B:T C?:T"),
        parameters("Y:T"),
        infer_like("Gemm", "alpha", "beta", "transA", "transB"),
        fused_gemm,
        {
            "alpha": number(1.0),
            "beta": number(1.0),
            "transA": integer(0),
            "transB": integer(0),
            "activation": ACTIVATION,
            "activation_alpha": number(),
            "activation_beta": number(),
            "activation_gamma": number(),
        },
        _matmul_flops,
    ),
    OpSchema(
        "MatMulNBits",
        parameters("A:T1 B:T2 scales:T1 zero_points?:T3 g_idx?:T4 bias?:T1"),
        parameters("Y:T1"),
        _nbits_infer,
        matmul_nbits,
        {
            "K": integer(required=True),
            "N": integer(required=True),
            "block_size": integer(required=True),
            "bits": integer(4),
            "accuracy_level": integer(0),
            "weight_prepacked": integer(0),
        },
        lambda inputs, outputs, attributes: 2.0 * math.prod(inputs[0] or ()) * int(attributes["N"]),
    ),
)
