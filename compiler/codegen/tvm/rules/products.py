"""Matrix products: MatMul of any ranks, and Gemm."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..lowering import Lowering, Rule, given
from .broadcast import read
from .elementwise import HALF


def product(b: Lowering, left: Any, right: Any, *, transposed: bool = False) -> Any:
    """``left[..., m, k] @ right[..., k, n]``, or ``right[..., n, k]`` if it is ``transposed``."""

    def matmul(x: Any, y: Any) -> Any:
        lead = b.broadcast([x.shape[:-2], y.shape[:-2]]) if len(x.shape) > 2 or len(y.shape) > 2 else []
        rank = len(lead)
        k = b.te.reduce_axis((0, x.shape[-1]), "k")
        columns = y.shape[-2] if transposed else y.shape[-1]
        wide = accumulator(x.dtype)

        def element(*i: Any) -> Any:
            row, column = i[rank], i[rank + 1]
            across = (column, k) if transposed else (k, column)
            a = _at(b, x, [*i[:rank], row, k], lead)
            c = _at(b, y, [*i[:rank], *across], lead)
            return b.te.sum(a.astype(wide) * c.astype(wide), axis=k)

        found = b.te.compute([*lead, x.shape[-2], columns], element, name="matmul")
        return found if wide == x.dtype else b.te.compute(found.shape, lambda *i: found(*i).astype(x.dtype))

    return b.compute(matmul, left, right, name="matmul")


def accumulator(dtype: str) -> str:
    """What products are summed in."""
    return "float32" if dtype in HALF else dtype


def _at(b: Lowering, tensor: Any, indices: list[Any], lead: list[Any]) -> Any:
    """An element of a matrix of a stack that broadcasts; the last two indices are the matrix's own."""
    rank = len(tensor.shape)
    own = [*lead, *tensor.shape[-2:]]
    return read(b, tensor, indices[len(indices) - rank :], own[len(own) - rank :])


def _matmul(b: Lowering, node: ir.Node) -> Any:
    left, right = b.values(node)
    one, other = len(b.shape(left)), len(b.shape(right))
    if one == 1:
        left = b.emit(b.relax.op.expand_dims(left, 0))
    if other == 1:
        right = b.emit(b.relax.op.expand_dims(right, 1))
    found = product(b, left, right)
    if one > 1 and other > 1:
        return found
    *lead, rows, columns = b.shape(found)
    return reshaped(b, found, [*lead, *([rows] if one > 1 else []), *([columns] if other > 1 else [])])


def reshaped(b: Lowering, expression: Any, shape: list[Any]) -> Any:
    """The same elements in another shape, which costs nothing."""
    if 0 in [s for s in shape if isinstance(s, int)]:  # which stands for the size that was, to TVM
        return b.empty(shape, str(expression.ty.dtype))
    return b.emit(b.relax.op.reshape(expression, b.relax.ShapeExpr(shape)))


def _gemm(b: Lowering, node: ir.Node) -> Any:
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    first, second = bool(node.attributes.get_int("transA", 0)), bool(node.attributes.get_int("transB", 0))
    bias = given(node, 2)

    def gemm(x: Any, y: Any, *c: Any) -> Any:
        rows, inner = (x.shape[1], x.shape[0]) if first else (x.shape[0], x.shape[1])
        columns = y.shape[0] if second else y.shape[1]
        k = b.te.reduce_axis((0, inner), "k")
        wide = accumulator(x.dtype)
        found = b.te.compute(
            [rows, columns],
            lambda i, j: b.te.sum(
                (x[k, i] if first else x[i, k]).astype(wide) * (y[j, k] if second else y[k, j]).astype(wide),
                axis=k,
            ),
            name="matmul",
        )
        if alpha == 1 and not c and wide == x.dtype:
            return found

        def element(i: Any, j: Any) -> Any:
            value = found[i, j] if alpha == 1 else found[i, j] * b.const(alpha, wide)
            if c:
                added = read(b, c[0], [i, j], [rows, columns]).astype(wide)
                value = value + (added if beta == 1 else added * b.const(beta, wide))
            return value.astype(x.dtype)

        return b.te.compute([rows, columns], element, name="gemm")

    inputs = b.values(node)[:2]
    return b.compute(gemm, *inputs, *([] if bias is None else [b.value(bias)]), name="gemm")


RULES: dict[str, Rule] = {"MatMul": Rule(_matmul), "Gemm": Rule(_gemm)}
