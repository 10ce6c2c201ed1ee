"""legalize-rotary: the forms ONNX Runtime's kernel refuses run, and equal a rotation written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.program import Dim, Program
from miaotui.compiler.reference import Array
from miaotui.passes.lowering.onnxruntime.rotary import LegalizeRotary
from support.rewriting import Arrays, assert_same, operators, ort_run, run_pass

RANDOM = np.random.default_rng(0)
HEADS, SIZE = 3, 8


def rotate(x: Array, cos: Array, sin: Array, interleaved: int) -> Array:
    """The rotation in float64; x: [batch, heads, sequence, size], tables: [batch or 1, sequence, half]."""
    half = cos.shape[-1]
    head, tail = x[..., : 2 * half].astype(np.float64), x[..., 2 * half :]
    a, b = (head[..., 0::2], head[..., 1::2]) if interleaved else (head[..., :half], head[..., half:])
    c, s = cos[:, None], sin[:, None]
    u, v = a * c - b * s, a * s + b * c
    turned = np.stack([u, v], -1).reshape(head.shape) if interleaved else np.concatenate([u, v], -1)
    return np.concatenate([turned, tail], -1)


def rotary(
    batch: Dim, cos_batch: Dim, flat: bool, dtype: ir.DataType = ir.DataType.FLOAT, part: int = 0, **kw: Any
) -> Program:
    b = Builder()
    x = b.input("x", (batch, "seq", HEADS * SIZE) if flat else (batch, HEADS, "seq", SIZE), dtype)
    tables = [b.input(name, (cos_batch, "seq", (part or SIZE) // 2), dtype) for name in ("cos", "sin")]
    if flat or part:
        kw["num_heads"] = HEADS
    if part:
        kw["rotary_embedding_dim"] = part
    b.output(b.op("RotaryEmbedding", x, *tables, **kw), "y")
    return b.program()


def run_case(
    program: Program, batch: int, cos_batch: int, flat: bool, interleaved: int = 0, part: int = 0
) -> None:
    dtype = program.main.graph.inputs[0].dtype
    assert dtype is not None
    seq, half = 5, (part or SIZE) // 2
    x = RANDOM.standard_normal((batch, HEADS, seq, SIZE)).astype(dtype.numpy())
    cos, sin = (RANDOM.standard_normal((cos_batch, seq, half)).astype(dtype.numpy()) for _ in range(2))
    expected = rotate(x, cos, sin, interleaved)
    feed: Arrays = {"x": x, "cos": cos, "sin": sin}
    if flat:
        feed["x"] = x.transpose(0, 2, 1, 3).reshape(batch, seq, -1)
        expected = expected.transpose(0, 2, 1, 3).reshape(batch, seq, -1)
    assert_same({"y": expected.astype(dtype.numpy())}, ort_run(program, feed))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("part", [0, 4])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_cosines_shared_by_the_batch(flat: bool, part: int, interleaved: int) -> None:
    program = rotary("batch", 1, flat, part=part, interleaved=interleaved)
    assert run_pass(LegalizeRotary(), program).changed == 1
    assert operators(program)["com.microsoft::RotaryEmbedding"] == 1
    for batch in (1, 3):
        run_case(program, batch, 1, flat, interleaved, part)


def test_float16() -> None:
    program = rotary("batch", 1, True, ir.DataType.FLOAT16)
    run_pass(LegalizeRotary(), program)
    run_case(program, 2, 1, True)


@pytest.mark.parametrize("cos_batch", [1, 3])
def test_cosines_of_an_unrelated_batch_are_expanded(cos_batch: int) -> None:
    program = rotary("batch", "other", False)
    run_pass(LegalizeRotary(), program)
    run_case(program, 3, cos_batch, False)


def test_cosines_of_the_same_batch_are_left_alone() -> None:
    program = rotary("batch", "batch", True)
    assert run_pass(LegalizeRotary(), program).changed == 0
    run_case(program, 2, 2, True)


def test_positions_shared_by_the_batch_are_expanded() -> None:
    b = Builder()
    x = b.input("x", ("batch", HEADS, "seq", SIZE))
    tables = [b.weight(name, RANDOM.standard_normal((16, SIZE // 2))) for name in ("cos", "sin")]
    b.output(b.op("RotaryEmbedding", x, *tables, b.input("positions", (1, "seq"), INT64)), "y")
    program = b.program()
    assert run_pass(LegalizeRotary(), program).changed == 1
    data = RANDOM.standard_normal((2, HEADS, 5, SIZE)).astype(np.float32)
    positions = np.array([[3, 1, 4, 1, 5]])
    cos, sin = (table.const_value.numpy()[positions] for table in tables if table.const_value is not None)
    expected = rotate(data, cos, sin, 0).astype(np.float32)
    assert_same({"y": expected}, ort_run(program, {"x": data, "positions": positions}))
