"""flatten-attention: heads split by the kernel, everything around it equal in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import BOOL, Builder
from miaotui.compiler.program import Program
from miaotui.passes.lowering.onnxruntime.attention import FlattenAttention
from support.rewriting import Arrays, check, operators, reasons, run_pass

RANDOM = np.random.default_rng(0)


def split(b: Builder, x: ir.Value, heads: int, size: int) -> ir.Value:
    shape = b.weight(f"split_{len(b.graph.initializers)}", np.array([0, 0, heads, size]))
    return b.op("Transpose", b.op("Reshape", x, shape), perm=[0, 2, 1, 3])


def merge(b: Builder, x: ir.Value, hidden: int, name: str = "y") -> ir.Value:
    shape = b.weight(f"merge_{name}", np.array([0, 0, hidden]))
    return b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3]), shape, name=name)


def attention(
    heads: int = 3,
    kv_heads: int = 3,
    size: int = 8,
    mask: str = "",
    dtype: ir.DataType = ir.DataType.FLOAT,
    **kw: Any,
) -> Program:
    b = Builder()
    q = b.input("q", ("batch", "seq", heads * size), dtype)
    k = b.input("k", ("batch", "total", kv_heads * size), dtype)
    v = b.input("v", ("batch", "total", kv_heads * size), dtype)
    masks = [b.input("mask", ("batch", 1, "seq", "total"), BOOL if mask == "bool" else dtype)] if mask else []
    parts = split(b, q, heads, size), split(b, k, kv_heads, size), split(b, v, kv_heads, size)
    b.output(merge(b, b.op("Attention", *parts, *masks, **kw), heads * size), "y")
    return b.program()


def feeds(
    heads: int = 3,
    kv_heads: int = 3,
    size: int = 8,
    mask: str = "",
    dtype: type = np.float32,
    cross: bool = False,
) -> list[Arrays]:
    made = []
    for batch, seq in ((1, 1), (1, 7), (3, 5)):
        total = seq + 4 if cross else seq
        feed: Arrays = {
            name: RANDOM.standard_normal((batch, n, h * size)).astype(dtype)
            for name, n, h in (("q", seq, heads), ("k", total, kv_heads), ("v", total, kv_heads))
        }
        allowed = RANDOM.random((batch, 1, seq, total)) < 0.7
        allowed[..., 0] = True
        allowed[-1, :, -1] = False  # a query that may look nowhere
        if mask == "bool":
            feed["mask"] = allowed
        elif mask:
            feed["mask"] = np.where(allowed, 0, -1e4).astype(dtype)
        made.append(feed)
    return made


@pytest.mark.parametrize("mask", ["", "bool", "float"])
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(3, 3, 8), (4, 2, 8), (6, 1, 5), (2, 2, 12)])
def test_reads_projections_without_transposes(heads: int, kv_heads: int, size: int, mask: str) -> None:
    program = attention(heads, kv_heads, size, mask)
    (result,) = check(FlattenAttention(), program, feeds(heads, kv_heads, size, mask))
    assert result.changed == 1
    assert operators(program) == {"Attention": 1}


@pytest.mark.parametrize("kw", [{"is_causal": 1}, {"scale": 0.3}, {"softcap": 5.0}])
def test_keeps_attributes(kw: dict[str, Any]) -> None:
    check(FlattenAttention(), attention(**kw), feeds())


def test_keeps_cross_attention_of_another_length() -> None:
    check(FlattenAttention(), attention(mask="bool"), feeds(mask="bool", cross=True))


def test_keeps_float16() -> None:
    program = attention(dtype=ir.DataType.FLOAT16, mask="float")
    check(FlattenAttention(), program, feeds(mask="float", dtype=np.float16))


def test_keeps_float64() -> None:
    program = attention(dtype=ir.DataType.DOUBLE)
    check(FlattenAttention(), program, feeds(dtype=np.float64))


def test_rotary_embedding_and_head_norm_are_flattened_too() -> None:
    b = Builder()
    x = b.input("x", ("batch", "seq", 24))
    cos, sin = b.input("cos", ("batch", "seq", 4)), b.input("sin", ("batch", "seq", 4))
    q = split(b, b.op("Relu", x, name="rq"), 3, 8)
    k = split(b, b.op("Neg", x, name="rk"), 3, 8)
    q = b.op(
        "RotaryEmbedding", b.op("RMSNormalization", q, b.weight("g", RANDOM.random(8)), axis=-1), cos, sin
    )
    k = b.op("RotaryEmbedding", k, cos, sin)
    b.output(merge(b, b.op("Attention", q, k, split(b, x, 3, 8)), 24), "y")
    program = b.program()
    made = [
        {
            "x": RANDOM.standard_normal((n, s, 24)).astype(np.float32),
            "cos": RANDOM.standard_normal((n, s, 4)).astype(np.float32),
            "sin": RANDOM.standard_normal((n, s, 4)).astype(np.float32),
        }
        for n, s in ((1, 1), (2, 6))
    ]
    check(FlattenAttention(), program, made)
    assert "Transpose" not in operators(program)


def test_a_key_that_is_not_transposed_costs_less_than_the_rest_saves() -> None:
    b = Builder()
    q, v = b.input("q", ("batch", "seq", 24)), b.input("v", ("batch", "seq", 24))
    k = b.input("k", ("batch", 3, "seq", 8))
    b.output(merge(b, b.op("Attention", split(b, q, 3, 8), k, split(b, v, 3, 8)), 24), "y")
    program = b.program()
    feed = {n: RANDOM.standard_normal((2, 5, 24)).astype(np.float32) for n in "qv"}
    feed["k"] = RANDOM.standard_normal((2, 3, 5, 8)).astype(np.float32)
    check(FlattenAttention(), program, [feed])
    assert operators(program)["Transpose"] == 1


def test_a_reshape_to_rows_reads_the_flat_output() -> None:
    b = Builder()
    q = b.input("q", ("batch", "seq", 24))
    heads = b.op("Attention", split(b, q, 3, 8), split(b, b.op("Neg", q, name="n"), 3, 8), split(b, q, 3, 8))
    swapped = b.op("Transpose", heads, perm=[0, 2, 1, 3])
    b.output(b.op("Reshape", swapped, b.weight("rows", np.array([-1, 24]))), "rows_out")
    b.output(b.op("Neg", swapped), "heads_out")
    program = b.program()
    check(FlattenAttention(), program, [{"q": RANDOM.standard_normal((2, 5, 24)).astype(np.float32)}])
    assert "Transpose" not in operators(program)


def test_declines_when_heads_are_read_as_they_are() -> None:
    b = Builder()
    q = b.input("q", ("batch", "seq", 24))
    heads = split(b, q, 3, 8)
    b.output(b.op("Attention", heads, heads, heads), "y")
    assert "not merged back" in reasons(run_pass(FlattenAttention(), b.program()))


def test_declines_when_nothing_is_saved() -> None:
    b = Builder()
    parts = [b.input(n, ("batch", 3, "seq", 8)) for n in "qkv"]
    b.output(merge(b, b.op("Attention", *parts), 24), "y")
    assert "not transposed heads" in reasons(run_pass(FlattenAttention(), b.program()))


def test_declines_when_the_number_of_heads_varies() -> None:
    b = Builder()
    q = b.input("q", ("batch", "seq", "heads", 8))
    parts = [b.op("Transpose", q, perm=[0, 2, 1, 3]) for _ in range(3)]
    target = b.weight("t", np.array([0, 0, -1]))
    swapped = b.op("Transpose", b.op("Attention", *parts), perm=[0, 2, 1, 3])
    b.output(b.op("Reshape", swapped, target), "y")
    assert "not static" in reasons(run_pass(FlattenAttention(), b.program()))


def test_leaves_the_present_cache_as_an_output() -> None:
    b = Builder()
    q = b.input("q", ("batch", "seq", 24))
    past = [b.input(n, ("batch", 3, "past", 8)) for n in ("pk", "pv")]
    parts = [split(b, b.op("Neg", q, name=f"n{i}"), 3, 8) for i in range(3)]
    y, present_key, present_value = b.ops("Attention", *parts, None, *past, outputs=3)
    b.output(merge(b, y, 24), "y")
    b.output(present_key, "present_key")
    b.output(present_value, "present_value")
    feed = {n: RANDOM.standard_normal((2, 3, 4, 8)).astype(np.float32) for n in ("pk", "pv")}
    feed["q"] = RANDOM.standard_normal((2, 5, 24)).astype(np.float32)
    (result,) = check(FlattenAttention(), b.program(), [feed])
    assert result.changed == 1


def test_sizes_without_a_name_are_not_taken_for_equal() -> None:
    b = Builder()
    x = b.input("x", (None, None, 24))
    target = b.input("target", (4,), ir.DataType.INT64)
    parts = [
        b.op("Transpose", b.op("Reshape", b.op(kind, x), target), perm=[0, 2, 1, 3])
        for kind in ("Neg", "Abs", "Relu")
    ]
    for part in parts:
        part.producer().inputs[0].shape = ir.Shape([None, None, 3, 8])  # type: ignore[union-attr]
        part.shape = ir.Shape([None, 3, None, 8])
    b.output(merge(b, b.op("Attention", *parts), 24), "y")
    feed = {"x": RANDOM.standard_normal((2, 6, 24)).astype(np.float32), "target": np.array([4, 3, 3, 8])}
    (result,) = check(FlattenAttention(), b.program(), [feed])
    assert result.changed == 1
