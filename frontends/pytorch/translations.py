"""Translations of torch operators that replace or extend the exporter's own."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from .operator import recurrent_translations


def translations() -> dict[Any, Callable[..., Any]]:
    """Operator overload → function that records ONNX operators, for ``custom_translation_table``."""
    import torch

    aten = torch.ops.aten
    table: dict[Any, Callable[..., Any]] = {
        aten.scaled_dot_product_attention.default: attention,
        aten.einsum.default: einsum,
    }
    return {**table, **recurrent_translations()}


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``aten.scaled_dot_product_attention`` as one Attention, whatever divides the query heads.

    query: [batch, heads, length, size] (or without heads), key and value: [batch, kv_heads, ...]. The
    exporter's own refuses kv heads that broadcast (MQA) and ``enable_gqa`` with equal counts.
    """
    from onnxscript import opset23 as op

    if dropout_p:
        raise ValueError("dropout_p of scaled_dot_product_attention is not 0 in evaluation mode")
    rank = len(query.shape)
    if rank not in (3, 4) or {len(key.shape), len(value.shape)} != {rank}:
        raise ValueError(f"scaled_dot_product_attention over {rank}-dimensional tensors")
    if rank == 3:
        query, key, value = (op.Unsqueeze(x, _axes([1])) for x in (query, key, value))
        if attn_mask is not None and len(attn_mask.shape) == 3:
            attn_mask = op.Unsqueeze(attn_mask, _axes([1]))
    elif key.shape[1] != value.shape[1] or query.shape[1] % key.shape[1]:
        raise ValueError(f"{key.shape[1]} key heads do not divide {query.shape[1]} query heads")
    made, _, _, _ = op.Attention(query, key, value, attn_mask, is_causal=int(is_causal), scale=scale)
    return op.Squeeze(made, _axes([1])) if rank == 3 else made


def einsum(equation: str, tensors: Sequence[Any], path: Any = None) -> Any:
    """``aten.einsum``; a product whose last axes meet a weight's first ones becomes a MatMul.

    ``abc,cde->abde`` and ``abcd,cde->abe`` are how Keras writes the projections of attention.
    """
    from onnxscript import opset23 as op

    terms = re.fullmatch(r"([a-z]+),([a-z]+)->([a-z]+)", equation.replace(" ", ""))
    if terms is None or not all(isinstance(size, int) for size in tensors[1].shape):
        return op.Einsum(*tensors, equation=equation)
    left, right, out = terms.groups()
    shared = next((n for n in range(len(right), 0, -1) if left.endswith(right[:n])), 0)
    if not 0 < shared < len(right) or out != left[:-shared] + right[shared:] or len(set(out)) != len(out):
        return op.Einsum(*tensors, equation=equation)
    data, weight = tensors
    kept = [int(size) for size in weight.shape[shared:]]
    inner = math.prod(int(size) for size in weight.shape[:shared])
    if len(right) > 2:
        weight = op.Reshape(weight, _axes([inner, math.prod(kept)]))
    rows = [0] * (len(left) - shared)
    if shared > 1:
        data = op.Reshape(data, _axes([*rows, inner]))
    product = op.MatMul(data, weight)
    return op.Reshape(product, _axes([*rows, *kept])) if len(kept) > 1 else product


def _axes(values: Sequence[int]) -> Any:
    from onnxscript import opset23 as op

    return op.Constant(value_ints=list(values))
