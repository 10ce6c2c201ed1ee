"""Products and attention of halves on a GPU as kernels of our own, on tensor cores."""

from __future__ import annotations

import math
from typing import Any

from .kernels import cuda_attention, cuda_matmul
from .kernels.cuda_attention import Heads
from .lowering import Lowering


def product(b: Lowering, left: Any, right: Any) -> Any:
    """``left[..., k] @ right[k, n]``; None if the kernel does not fit."""
    if b.cpu is not None or len(b.shape(right)) != 2 or len(b.shape(left)) < 2:
        return None
    *lead, inputs = b.shape(left)
    outputs, dtype = b.shape(right)[1], str(left.ty.dtype)
    rows: Any = math.prod(lead)
    known = rows if isinstance(rows, int) else None
    if not isinstance(inputs, int) or not isinstance(outputs, int):
        return None
    if cuda_matmul.declines(known, inputs, outputs, dtype) is not None:
        return None
    kernel = cuda_matmul.matmul(known, inputs, outputs, dtype)
    flat = b.emit(b.relax.op.reshape(left, b.relax.ShapeExpr([rows, inputs])))
    found = b.call(kernel.function, [flat, right], [rows, outputs], dtype)
    return b.emit(b.relax.op.reshape(found, b.relax.ShapeExpr([*lead, outputs])))


def attention(b: Lowering, query: Any, key: Any, value: Any, bias: Any, scale: float) -> Any:
    """softmax(scale * query @ keyᵀ + bias) @ value, all of four axes; None if the kernel does not fit."""
    if b.cpu is not None:
        return None
    batch, count, tokens, size = b.shape(query)
    heads = Heads(count, b.shape(key)[1], size, b.shape(value)[3])
    fixed = (heads.count, heads.kv_count, heads.size, heads.value_size)
    dtype, sequence = str(query.ty.dtype), tokens if isinstance(tokens, int) else None
    if not all(isinstance(n, int) for n in fixed):
        return None
    if cuda_attention.declines(heads, dtype, sequence) is not None:
        return None
    if not b.equal(batch, b.shape(key)[0]) or not b.equal(b.shape(key)[2], b.shape(value)[2]):
        return None
    options: dict[str, Any] = {"scale": scale}
    inputs = [query, key, value]
    if bias is not None:
        _, mask_heads, rows, columns = b.shape(bias)
        whole = b.equal(rows, tokens) and b.equal(columns, b.shape(key)[2])
        if not whole or not isinstance(mask_heads, int) or mask_heads not in (1, count):
            return None
        options |= {"mask": "add", "mask_heads": mask_heads}
        # it is a mask of that dtype, or of 0 and -inf: nothing is lost
        inputs.append(b.compute(lambda x: _as(b, x, dtype), bias, name="mask"))
    kernel = cuda_attention.attention(heads, dtype, **options)
    return b.call(kernel.function, inputs, [batch, count, tokens, heads.value_size], dtype)


def _as(b: Lowering, x: Any, dtype: str) -> Any:
    return b.te.compute(x.shape, lambda *i: x(*i).astype(dtype), name="mask")
