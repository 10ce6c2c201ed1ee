"""Tensor-core kernels: the CUDA code that TVM writes of them, run on the CPU, against numpy."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.codegen.tvm.kernels import cuda_attention, cuda_matmul
from miaotui.compiler.codegen.tvm.kernels.cuda_attention import Heads
from miaotui.compiler.codegen.tvm.kernels.cuda_matmul import LARGE, MIDDLE, SMALL, Tiles
from support.cuda_on_cpu import NUMPY, Array, OnCpu

BOUND = {"float16": 1e-3, "bfloat16": 8e-3}
"""Scaled error: a result is rounded once, weights of attention once more."""

slow = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("nvcc") or not shutil.which("g++"), reason="needs CUDA's headers and g++"
    ),
]
RANDOM = np.random.default_rng(0)


def numbers(dtype: str, *shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(NUMPY[dtype])


def scaled(got: Array, want: Array) -> float:
    return float(np.max(np.abs(got.astype(np.float64) - want)) / max(1.0, np.max(np.abs(want))))


@pytest.mark.parametrize(
    ("dtype", "transposed", "tiles", "rows", "known", "inputs", "outputs", "batch"),
    [
        pytest.param("float16", False, MIDDLE, 70, False, 104, 72, 1, marks=slow),
        pytest.param("bfloat16", True, LARGE, 130, True, 72, 136, 1, marks=slow),
        pytest.param("float16", True, SMALL, 13, True, 200, 72, 1, marks=slow),
        pytest.param("float16", False, MIDDLE, 33, True, 40, 64, 2, marks=slow),
    ],
)
def test_matmul_at_edges_of_tiles(
    dtype: str, transposed: bool, tiles: Tiles, rows: int, known: bool, inputs: int, outputs: int, batch: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    options: dict[str, Any] = {"transposed": transposed, "bias": True, "activation": "silu", "tiles": tiles}
    kernel = cuda_matmul.matmul(rows if known else None, inputs, outputs, dtype, batch=batch, **options)
    outer = (batch,) if batch > 1 else ()
    a = numbers(dtype, *outer, rows, inputs)
    b = numbers(dtype, *outer, *((outputs, inputs) if transposed else (inputs, outputs)))
    bias, y = numbers(dtype, outputs), np.full((*outer, rows, outputs), np.nan, NUMPY[dtype])
    grid = (-(-outputs // tiles.columns), -(-rows // tiles.rows), batch)
    OnCpu(kernel, tmp_path)(grid, a=a, b=b, bias=bias, y=y, rows=rows)
    right = np.swapaxes(b, -1, -2) if transposed else b
    total = a.astype(np.float64) @ right.astype(np.float64) + bias.astype(np.float64)
    assert scaled(y, total / (1 + np.exp(-total))) < BOUND[dtype]


@pytest.mark.parametrize(
    ("dtype", "heads", "options", "batch", "queries", "keys"),
    [
        pytest.param("float16", Heads(2, 1, 32, 48), {}, 2, 70, 90, marks=slow),
        pytest.param("bfloat16", Heads(2, 2, 64, 64, first=False), {"causal": True}, 1, 80, 140, marks=slow),
        pytest.param("float16", Heads(2, 2, 16, 16), {"mask": "add", "mask_heads": 2}, 2, 20, 70, marks=slow),
        pytest.param("float16", Heads(2, 1, 16, 16), {"mask": "keep"}, 1, 33, 66, marks=slow),
        pytest.param(
            "bfloat16", Heads(1, 1, 16, 16), {"mask": "add", "one_row": True}, 2, 20, 70, marks=slow
        ),
    ],
)
def test_attention_at_edges_of_tiles(
    dtype: str, heads: Heads, options: dict[str, Any], batch: int, queries: int, keys: int, tmp_path: Path
) -> None:
    kernel = cuda_attention.attention(heads, dtype, **options)
    q, k = (
        numbers(dtype, batch, heads.count, queries, heads.size),
        numbers(dtype, batch, heads.kv_count, keys, heads.size),
    )
    v = numbers(dtype, batch, heads.kv_count, keys, heads.value_size)
    masks: dict[str, Array] = {}
    if options.get("mask") == "add":
        rows = 1 if options.get("one_row") else queries
        masks["mask"] = numbers(dtype, batch if rows == 1 else 1, heads.count, rows, keys)
    if options.get("mask") == "keep":
        masks["mask"] = RANDOM.random((batch, 1, queries, keys)) < 0.5
        masks["mask"][:, :, 3] = False
    want = attended(q, k, v, options.get("causal", False), masks.get("mask"))

    def laid(array: Array) -> Array:
        return np.ascontiguousarray(array if heads.first else array.swapaxes(1, 2))

    y = laid(np.full(want.shape, np.nan, NUMPY[dtype]))
    sizes = {"batch": batch, "sequence": queries, "total": keys, "mask_batch": len(masks.get("mask", ()))}
    grid = (-(-queries // 64), heads.count, batch)
    OnCpu(kernel, tmp_path)(grid, q=laid(q), k=laid(k), v=laid(v), y=y, **masks, **sizes)
    assert scaled(y if heads.first else y.swapaxes(1, 2), want) < BOUND[dtype]


def attended(q: Array, k: Array, v: Array, causal: bool, mask: Array | None) -> Array:
    """In float64; a query that sees no key gives zeros."""
    shared = q.shape[1] // k.shape[1]
    q, k, v = (a.astype(np.float64) for a in (q, k.repeat(shared, 1), v.repeat(shared, 1)))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    queries, keys = scores.shape[-2:]
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask.astype(np.float64)
    if causal:
        scores = np.where(np.arange(keys) <= np.arange(queries)[:, None] + keys - queries, scores, -np.inf)
    most = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(most), most, 0))
    return weights @ v / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


def test_declines_what_does_not_fit() -> None:
    assert cuda_matmul.declines(64, 768, 3072, "float16") is None
    assert "multiples of 8" in str(cuda_matmul.declines(64, 12, 3072, "float16"))
    assert "too few" in str(cuda_matmul.declines(1, 768, 3072, "bfloat16"))
    assert "float32" in str(cuda_matmul.declines(64, 768, 3072, "float32"))
    assert cuda_attention.declines(Heads(8, 2, 64, 64), "float16", None) is None
    assert "20 numbers" in str(cuda_attention.declines(Heads(8, 2, 20, 64), "float16", None))
    assert "evenly" in str(cuda_attention.declines(Heads(8, 3, 64, 64), "float16", None))
    assert "1 queries" in str(cuda_attention.declines(Heads(8, 2, 64, 64), "float16", 1))
