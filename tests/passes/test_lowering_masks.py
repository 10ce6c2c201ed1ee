"""built-in-mask: masks that are causal or full at every length are recognised, near misses are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import BOOL, INT64, Builder
from miaotui.compiler.program import DimRange, Program
from miaotui.passes.lowering.onnxruntime.causal import BuiltInMask
from support.rewriting import Arrays, check, operators, reasons, run_pass

RANDOM = np.random.default_rng(0)
Mask = Callable[[Builder, ir.Value], ir.Value]


def number(b: Builder, value: Any, dtype: type = np.int64) -> ir.Value:
    return b.weight(f"number_{len(b.graph.initializers)}", np.array(value, dtype))


def positions(b: Builder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Query positions [sequence, 1] and key positions [1, sequence]."""
    length = b.op("Squeeze", b.op("Shape", x, start=1, end=2))
    steps = b.op("Range", number(b, 0), length, number(b, 1))
    return b.op("Unsqueeze", steps, number(b, [1])), b.op("Unsqueeze", steps, number(b, [0]))


def causal(b: Builder, x: ir.Value) -> ir.Value:
    query, key = positions(b, x)
    return b.op("LessOrEqual", key, query)


def window(size: int) -> Mask:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        query, key = positions(b, x)
        near = b.op("Less", b.op("Sub", query, key), number(b, size))
        return b.op("And", b.op("LessOrEqual", key, query), near)

    return build


def additive(fill: float) -> Mask:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        return b.op("Where", causal(b, x), number(b, 0, np.float32), number(b, fill, np.float32))

    return build


def full(b: Builder, x: ir.Value) -> ir.Value:
    query, key = positions(b, x)
    return b.op("GreaterOrEqual", b.op("Add", query, key), number(b, 0))


def strict(b: Builder, x: ir.Value) -> ir.Value:
    query, key = positions(b, x)
    return b.op("Less", key, query)


def table(size: int) -> Mask:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        rows = b.weight("tril", np.tri(size, dtype=np.bool_))
        length = b.op("Shape", x, start=1, end=2)
        ends = b.op("Concat", length, length, axis=0)
        return b.op("Slice", rows, number(b, [0, 0]), ends)

    return build


def per_batch(b: Builder, x: ir.Value) -> ir.Value:
    batch = b.op("Concat", b.op("Shape", x, start=0, end=1), number(b, [1, 1, 1]), axis=0)
    return b.op("And", b.op("Expand", number(b, True, np.bool_), batch), causal(b, x))


def padded(b: Builder, x: ir.Value) -> ir.Value:
    padding = b.op("Unsqueeze", b.input("padding", ("batch", "seq"), BOOL), number(b, [1, 2]))
    return b.op("And", causal(b, x), padding)


def attention(mask: Mask, **kw: Any) -> Builder:
    b = Builder()
    x = b.input("x", ("batch", "seq", 16))
    heads = b.op("Transpose", b.op("Reshape", x, number(b, [0, 0, 2, 8])), perm=[0, 2, 1, 3])
    b.output(b.op("Attention", heads, heads, heads, mask(b, x), **kw), "y")
    return b


FEEDS: list[Arrays] = [
    {"x": RANDOM.standard_normal((n, s, 16)).astype(np.float32)} for n, s in ((1, 1), (1, 6), (3, 5))
]


def kind(program: Program) -> str:
    node = next(n for n in program.main.graph if n.op_type == "Attention")
    assert len(node.inputs) == 3
    return "causal" if node.attributes["is_causal"].as_int() else "full"


@pytest.mark.parametrize(
    "mask", [causal, per_batch, additive(-np.inf), additive(float(np.finfo(np.float32).min)), table(16)]
)
def test_causal_masks(mask: Mask) -> None:
    program = attention(mask).program()
    check(BuiltInMask(), program, FEEDS)
    assert kind(program) == "causal"
    assert "Range" not in operators(program), "the mask's nodes are gone"


def test_a_mask_that_hides_nothing() -> None:
    program = attention(full).program()
    check(BuiltInMask(), program, FEEDS)
    assert kind(program) == "full"


def test_a_full_mask_on_causal_attention_leaves_it_causal() -> None:
    program = attention(full, is_causal=1).program()
    check(BuiltInMask(), program, FEEDS)
    assert kind(program) == "causal"


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (window(3), "neither causal nor full at length 4"),
        (window(40), "neither causal nor full at length 41"),
        (window(4096), "neither causal nor full at length 4097"),
        (window(100_000), "too long to evaluate"),
        (padded, "depends on padding"),
        (additive(-1e4), "finite biases"),
        (strict, "may not see itself"),
    ],
)
def test_near_misses_are_declined(mask: Mask, reason: str) -> None:
    assert reason in reasons(run_pass(BuiltInMask(), attention(mask).program()))


def test_a_window_longer_than_any_sequence_is_causal() -> None:
    program = attention(window(40)).program(seq=DimRange(1, 40))
    assert run_pass(BuiltInMask(), program).changed == 1


def test_queries_and_keys_of_different_lengths_are_declined() -> None:
    b = Builder()
    q, k = b.input("q", ("batch", 2, "seq", 8)), b.input("k", ("batch", 2, "total", 8))
    b.output(b.op("Attention", q, k, k, b.weight("mask", np.ones((1, 1), np.bool_))), "y")
    assert "same length" in reasons(run_pass(BuiltInMask(), b.program()))


def test_a_cache_is_declined() -> None:
    b = Builder()
    q, past = b.input("q", ("batch", 2, "seq", 8)), b.input("past", ("batch", 2, "p", 8))
    mask = b.weight("mask", np.ones((1, 1), np.bool_))
    b.output(b.ops("Attention", q, q, q, mask, past, past, outputs=3)[0], "y")
    assert "cache" in reasons(run_pass(BuiltInMask(), b.program()))


def test_a_mask_from_data_is_declined_even_through_many_nodes() -> None:
    b = Builder()
    x = b.input("x", ("batch", 2, "seq", 8))
    value = b.input("ids", ("seq", "seq"), INT64)
    for _ in range(1200):
        value = b.op("Neg", value)
    b.output(b.op("Attention", x, x, x, b.op("Cast", value, to=ir.DataType.BOOL)), "y")
    assert "more than 400 nodes" in reasons(run_pass(BuiltInMask(), b.program()))
