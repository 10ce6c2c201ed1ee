"""group-query-attention: every variant equals the cached entry's own meaning, ragged rows and chunks too."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.fusion import FUSION
from miaotui.passes.lowering.onnxruntime.gqa import UseGroupQueryAttention
from support.decode_graphs import Arrays, Layers, ort_decode
from support.rewriting import reasons, run_pass

CASES = (([0], 5), ([0, 0, 0], 4), ([3, 0, 9], 1), ([3, 0, 9], 4), ([11], 6))
"""Past lengths of the rows, and new tokens: prefill, ragged decode, ragged and later chunks."""


def operators(program: Program) -> Counter[str]:
    return Counter(n.op_type for n in program.entries["decode"].graph)


def assert_like(layers: Layers, got: Arrays, wanted: Arrays, feeds: Arrays, tolerance: float = 1e-5) -> None:
    """Logits, tokens and the part of the cache that holds tokens."""
    assert np.abs(got["logits"] - wanted["logits"]).max() <= tolerance * max(
        1, np.abs(wanted["logits"]).max()
    )
    np.testing.assert_array_equal(got["next"], wanted["next"])
    tokens = feeds["input_ids"].shape[1]
    for state in layers.decoding().state:
        for row, past in enumerate(feeds["past_lengths"]):
            held = slice(0, past + tokens)
            difference = got[state.output][row, :, held] - wanted[state.output][row, :, held]
            assert np.abs(difference).max() <= tolerance, state.output


def check(layers: Layers, cases: tuple[tuple[list[int], int], ...] = CASES) -> Program:
    program = layers.program()
    feeds = [layers.feeds(past, tokens) for past, tokens in cases]
    wanted = [evaluate(program.entries["decode"], feed) for feed in feeds]
    result = run_pass(UseGroupQueryAttention(), program)
    assert result.changed == layers.layers, reasons(result)
    for feed, expected in zip(feeds, wanted, strict=True):
        assert_like(layers, ort_decode(program, feed), expected, feed)
        assert_like(layers, ort_decode(program, feed, in_place=True), expected, feed)
    assert_like(layers, evaluate(program.entries["decode"], feeds[-1]), wanted[-1], feeds[-1])
    return program


@pytest.mark.parametrize(
    "layers",
    [
        Layers(),
        Layers(heads=3, kv_heads=3),
        Layers(heads=6, kv_heads=1, size=32),
        Layers(heads=9, kv_heads=3, size=64),
        Layers(rotary="interleaved"),
        Layers(rotary="table"),
        Layers(size=32, rotated=16),
        Layers(size=48, rotated=32, rotary="interleaved"),
        Layers(norms=True),
        Layers(window=3),
        Layers(window=3, softcap=2.0),
        Layers(softcap=1.5),
        Layers(scale=0.6),
        Layers(scale=1.0, window=5),
    ],
    ids=str,
)
def test_rotation_goes_inside(layers: Layers) -> None:
    found = operators(check(layers))
    assert "RotaryEmbedding" not in found
    assert found["Transpose"] == 7 * layers.layers + 1  # those of the weights


@pytest.mark.parametrize(
    "layers", [Layers(rotary="none"), Layers(alibi=True, rotary="none"), Layers(alibi=True)]
)
def test_takes_positions_from_a_bias_or_not_at_all(layers: Layers) -> None:
    check(layers)


@pytest.mark.parametrize("layers", [Layers(packed=True), Layers(packed=True, heads=2, scale=1.0)])
def test_projections_that_are_one_product_stay_packed(layers: Layers) -> None:
    assert "Split" not in operators(check(layers))


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (Layers(context=None), "nothing bounds the positions"),
        (Layers(rotary="by length"), "more than its position"),
        (Layers(size=8), "does not rotate 4 pairs of heads of 8"),
        (Layers(size=16, rotated=8), "does not rotate 4 pairs"),
        (Layers(size=24, hidden=72), "does not rotate 12 pairs"),
        (Layers(rotary="table", context=128), "its table has 64 positions, the model 128"),
    ],
)
def test_rotation_stays_outside_where_the_kernel_cannot_do_it(layers: Layers, why: str) -> None:
    program = layers.program()
    result = run_pass(UseGroupQueryAttention(), program)
    assert all(why in note.text for note in result.hits), result.hits
    assert operators(program)["RotaryEmbedding"] == 2 * layers.layers
    check(layers)


def test_rotated_keys_alone_stay_outside() -> None:
    assert operators(check(Layers(rotary="keys only")))["RotaryEmbedding"] == 2


@pytest.mark.parametrize(
    ("layers", "why"),
    [(Layers(size=12), "heads of a multiple of 8"), (Layers(size=4), "heads of a multiple of 8")],
)
def test_declines_heads_the_kernel_has_no_size_for(layers: Layers, why: str) -> None:
    assert why in reasons(run_pass(UseGroupQueryAttention(), layers.program()))


def test_layers_share_lengths_and_tables() -> None:
    program = check(replace(Layers(), layers=4))
    found = operators(program)
    assert (found["ReduceMax"], found["Expand"]) == (1 + 1, 1)  # one ReduceMax is the graph's own
    names = [n for n in program.entries["decode"].graph.initializers if n.startswith("rotary_")]
    assert sorted(names) == ["rotary_cos", "rotary_sin"]


def test_chunks_and_single_tokens_continue_a_whole_prompt() -> None:
    layers = Layers(window=6)
    program = layers.program()
    whole = layers.feeds([0, 0], 12, selected=12)
    expected = evaluate(program.entries["decode"], whole)["logits"]
    run_pass(UseGroupQueryAttention(), program)
    for step in CLEANUP:
        step.run(program, PassContext())
    state = {s.input: whole[s.input] for s in layers.decoding().state}
    rows: list[np.ndarray] = []
    at = 0
    for size in (5, 1, 3, 1, 2):
        feed = layers.feeds([at, at], size, selected=size)
        feed |= {"input_ids": whole["input_ids"][:, at : at + size], **state}
        got = ort_decode(program, feed, in_place=True)
        state = {s.input: got[s.output] for s in layers.decoding().state}
        rows.append(got["logits"])
        at += size
    assert np.abs(np.concatenate(rows, 1) - expected).max() < 1e-5


def test_no_selected_token_is_fine() -> None:
    layers = Layers()
    program = layers.program()
    run_pass(UseGroupQueryAttention(), program)
    assert ort_decode(program, layers.feeds([2, 4], 3, selected=0))["logits"].shape == (
        2,
        0,
        layers.vocabulary,
    )


def test_a_program_with_a_cache_joins_query_key_and_value_on_the_cpu_too() -> None:
    layers = Layers(norms=False)
    program = layers.program()
    feed = layers.feeds([3, 0], 4)
    wanted = evaluate(program.entries["decode"], feed)
    for step in CLEANUP:
        step.run(program, PassContext())
    program.entries["other"] = program.entries["decode"].clone()
    for step in FUSION:
        step.run(program, PassContext())
    first, second = (
        {id(v.const_value) for n, v in m.graph.initializers.items() if n.startswith("joined")}
        for m in program.entries.values()
    )
    assert first == second
    assert len(first) == layers.layers
    run_pass(UseGroupQueryAttention(), program)
    found = operators(program)
    assert found["MatMul"] == 5 * layers.layers + 1
    assert "Split" not in found
    assert_like(layers, ort_decode(program, feed), wanted, feed)
    plain = layers.program()
    plain.decoding = None
    for step in (*CLEANUP, *FUSION):
        step.run(plain, PassContext())
    assert operators(plain)["MatMul"] == 7 * layers.layers + 1
