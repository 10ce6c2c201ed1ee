"""CachedAttention: the reference against attention row by row, the expansion against the reference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler import dialect
from miaotui.compiler.codegen.onnxruntime.placement import fallbacks
from miaotui.compiler.ir.builder import FLOAT16, INT64, Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.lowering.onnxruntime import ExpandCachedAttention
from support.rewriting import assert_same, operators, ort_run, run_pass

BATCH, CAPACITY = 3, 20
LENGTHS = np.array([4, 0, 9])


def program(
    heads: int = 4, kv_heads: int = 2, size: int = 8, value_size: int = 8, bias: bool = False,
    dtype: ir.DataType = ir.DataType.FLOAT, **attributes: float,
) -> Program:  # fmt: skip
    b = Builder()
    q = b.input("q", ("batch", heads, "tokens", size), dtype)
    k = b.input("k", ("batch", kv_heads, "tokens", size), dtype)
    v = b.input("v", ("batch", kv_heads, "tokens", value_size), dtype)
    past_k = b.input("past_k", ("batch", kv_heads, "capacity", size), dtype)
    past_v = b.input("past_v", ("batch", kv_heads, "capacity", value_size), dtype)
    lengths = b.input("lengths", ("batch",), INT64)
    added = [b.input("bias", ("batch", 1, "tokens", "total"), dtype)] if bias else []
    made = b.ops("CachedAttention", q, k, v, past_k, past_v, lengths, *added, outputs=3,
                 domain=dialect.MIAOTUI, **attributes)  # fmt: skip
    for value, name in zip(made, ("y", "present_k", "present_v"), strict=True):
        b.output(value, name)
    return b.program()


def feeds(made: Program, tokens: int, lengths: np.ndarray = LENGTHS) -> dict[str, np.ndarray]:
    random = np.random.default_rng(tokens)
    sizes = {"batch": BATCH, "tokens": tokens, "capacity": CAPACITY, "total": int(lengths.max()) + tokens}
    given = {
        spec.name: random.standard_normal([sizes.get(d, d) for d in spec.shape]).astype(spec.dtype.numpy())
        for spec in made.inputs()
    }
    return {**given, "lengths": lengths}


CASES = [
    {"scale": 0.3},
    {"kv_heads": 4, "scale": 0.5},
    {"kv_heads": 1, "scale": 0.5, "value_size": 6},
    {"scale": 0.4, "window": 3},
    {"scale": 0.4, "softcap": 2.0},
    {"scale": 0.4, "bias": True, "window": 5, "softcap": 1.5},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("tokens", [1, 5])
def test_the_expansion_equals_the_reference(case: dict, tokens: int) -> None:
    made = program(**case)
    given = feeds(made, tokens)
    expected = evaluate(made.main, given)
    run_pass(ExpandCachedAttention(), made)
    assert_same(expected, ort_run(made, given), 1e-5)


def test_half_precision_stays_half() -> None:
    made = program(scale=0.3, dtype=FLOAT16)
    given = feeds(made, 3)
    expected = evaluate(made.main, given)
    run_pass(ExpandCachedAttention(), made)
    assert_same(expected, ort_run(made, given))


def test_no_head_is_repeated() -> None:
    made = program(scale=0.3)
    run_pass(ExpandCachedAttention(), made)
    assert operators(made)["Tile"] == 0 and operators(made)["MatMul"] == 2


@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_the_reference_equals_plain_attention_row_by_row(case: dict) -> None:
    made = program(**case)
    given = feeds(made, 4)
    found = evaluate(made.main, given)
    q, k, v = (given[name].astype(np.float64) for name in "qkv")
    groups = q.shape[1] // k.shape[1]
    for row, length in enumerate(LENGTHS):
        keys = np.concatenate([given["past_k"][row, :, :length], k[row]], 1)
        values = np.concatenate([given["past_v"][row, :, :length], v[row]], 1)
        for head in range(q.shape[1]):
            for token in range(4):
                first = max(0, length + token + 1 - case["window"]) if "window" in case else 0
                seen = slice(first, length + token + 1)
                scores = keys[head // groups, seen] @ q[row, head, token] * case["scale"]
                if "softcap" in case:
                    scores = case["softcap"] * np.tanh(scores / case["softcap"])
                weights = np.exp(scores - scores.max())
                wanted = weights @ values[head // groups, seen] / weights.sum()
                np.testing.assert_allclose(found["y"][row, head, token], wanted, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found["present_k"][row, :, : length + 4], keys.astype(np.float32))
        np.testing.assert_array_equal(
            found["present_k"][row, :, length + 4 :], given["past_k"][row, :, length + 4 :]
        )


@pytest.mark.parametrize("case", [case for case in CASES if "bias" not in case], ids=str)
def test_on_a_gpu_sizes_do_not_depend_on_the_lengths(case: dict) -> None:
    made = program(**case)
    given = feeds(made, 2)
    expected = evaluate(made.main, given)
    run_pass(ExpandCachedAttention(), made, PassContext(Target("cuda")))
    found = operators(made)
    assert "ReduceMax" not in found and "Slice" not in found
    assert not fallbacks(made, Target("cuda"))
    assert_same(expected, ort_run(made, given), 1e-5)


def test_a_bias_has_the_size_in_use_on_a_gpu_too() -> None:
    made = program(scale=0.4, bias=True)
    given = feeds(made, 2)
    expected = evaluate(made.main, given)
    run_pass(ExpandCachedAttention(), made, PassContext(Target("cuda")))
    assert_same(expected, ort_run(made, given), 1e-5)
