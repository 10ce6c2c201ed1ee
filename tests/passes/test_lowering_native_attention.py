"""Native lowering of attention: rotation, norms, masks and scales taken in, caches of every dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.dialect.cache import packed, unpacked
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import BOOL, INT64, Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.verify import verify
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext, PassResult
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.lowering.native import (
    LOWER_NATIVE,
    NativeAttention,
    NativeCache,
    NativeLinear,
    NativeWeights,
)
from support.decode_graphs import Arrays, Layers, block_weights, quantized
from support.rewriting import assert_same, reasons, run_pass

RNG = np.random.default_rng(11)
SIZE = 8
LENGTH = 6


def number(b: Builder, value: Any, dtype: type = np.int64) -> ir.Value:
    return b.weight(f"number_{len(b.graph.initializers)}", np.array(value, dtype))


def lowered(program: Program, entry: str, feeds: list[Arrays], tolerance: float = 2e-6) -> PassResult:
    wanted = [evaluate(program.entries[entry], feed) for feed in feeds]
    result = run_pass(NativeAttention(), program)
    for feed, expected in zip(feeds, wanted, strict=True):
        assert_same(expected, evaluate(program.entries[entry], feed), tolerance)
    return result


def fused(program: Program, entry: str = "main") -> list[ir.Node]:
    return [node for node in program.entries[entry].graph if node.op_type == "FusedAttention"]


def attribute(node: ir.Node, name: str) -> Any:
    found = node.attributes.get(name)
    return None if found is None else found.value


# Over a cache


CACHED: dict[str, tuple[Layers, dict[str, Any]]] = {
    "rotated": (Layers(), {"rotary": "half"}),
    "interleaved": (Layers(rotary="interleaved"), {"rotary": "interleaved"}),
    "a part of each head": (Layers(rotated=8), {"rotary": "half"}),
    "by tables": (Layers(rotary="table"), {"rotary": "half"}),
    "not rotated": (Layers(rotary="none"), {"rotary": None}),
    "keys alone rotated": (Layers(rotary="keys only"), {"rotary": None}),
    "normed heads": (Layers(norms=True), {"rotary": "half"}),
    "a window": (Layers(window=3), {"window": 3}),
    "soft cap and scale": (Layers(softcap=4.0, scale=0.3), {"softcap": 4.0}),
    "alibi": (Layers(rotary="none", alibi=True), {"rotary": None}),
    "packed projections": (Layers(packed=True), {"rotary": "half"}),
}


@pytest.mark.parametrize("case", CACHED)
def test_attention_over_a_cache_is_one_node(case: str) -> None:
    layers, attributes = CACHED[case]
    program = layers.program()
    feeds = [layers.feeds([4, 0, 7], tokens) for tokens in (1, 3)]
    result = lowered(program, "decode", feeds, 1e-5)
    nodes = fused(program, "decode")
    assert len(nodes) == layers.layers
    for node in nodes:
        for name, value in attributes.items():
            assert attribute(node, name) == (pytest.approx(value) if isinstance(value, float) else value)
        assert (len(node.inputs) > 10) == layers.norms
    left = {node.op_type for node in program.entries["decode"].graph}
    assert ("RotaryEmbedding" in left) == (case == "keys alone rotated")
    if case == "keys alone rotated":
        assert "only one of query and key is rotated" in "\n".join(note.text for note in result.hits)
    for step in (*LOWER_NATIVE, *CLEANUP):
        step.run(program, PassContext())
    verify(program)
    assert [n.op_type for n in program.entries["decode"].graph].count("Gather") <= 4  # tables are read once


# Of whole sequences


Mask = Callable[[Builder, ir.Value], ir.Value]


def whole(
    mask: Mask | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    flat: bool = False,
    length: int | str = "length",
    **attributes: Any,
) -> Program:
    b = Builder()
    parts = []
    for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        shape = ("batch", length, count * SIZE) if flat else ("batch", count, length, SIZE)
        parts.append(b.input(name, shape))
    if flat:
        attributes |= {"q_num_heads": heads, "kv_num_heads": kv_heads}
    inputs = [*parts, mask(b, parts[0])] if mask is not None else parts
    b.output(b.op("Attention", *inputs, **attributes), "y")
    return b.program()


def sequences(program: Program) -> list[Arrays]:
    made = []
    for batch, length in ((1, 1), (2, LENGTH)):
        sizes = {"batch": batch, "length": length}
        feed = {
            s.name: RNG.standard_normal([sizes.get(d, d) for d in s.shape or ()]) for s in program.inputs()
        }  # type: ignore[misc, arg-type]
        made.append({name: array.astype(np.float32) for name, array in feed.items()})
        for spec in program.inputs():
            if spec.dtype == ir.DataType.BOOL:
                kept = np.arange(length) < np.array([[max(1, length - 2 * row)] for row in range(batch)])
                made[-1][spec.name] = kept
    return made


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}, {"scale": 0.7}, {"softcap": 2.0}], ids=str)
def test_attention_of_a_sequence_is_one_node(flat: bool, attributes: dict[str, Any]) -> None:
    program = whole(flat=flat, **attributes)
    lowered(program, "main", sequences(program))
    (node,) = fused(program)
    assert attribute(node, "causal") == attributes.get("is_causal")


def positions(b: Builder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Query positions [length, 1] and key positions [1, length]."""
    length = b.op("Squeeze", b.op("Shape", x, start=2, end=3))
    steps = b.op("Range", number(b, 0), length, number(b, 1))
    return b.op("Unsqueeze", steps, number(b, [1])), b.op("Unsqueeze", steps, number(b, [0]))


def causal(b: Builder, x: ir.Value) -> ir.Value:
    query, key = positions(b, x)
    return b.op("LessOrEqual", key, query)


def near(b: Builder, x: ir.Value) -> ir.Value:
    query, key = positions(b, x)
    return b.op("Less", b.op("Sub", query, key), number(b, 3))


def always(b: Builder, x: ir.Value) -> ir.Value:
    query, _ = positions(b, x)
    return b.op("GreaterOrEqual", query, number(b, 0))


def ahead(b: Builder, x: ir.Value) -> ir.Value:
    _, key = positions(b, x)
    return b.op("GreaterOrEqual", key, number(b, 0))


def padding(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Unsqueeze", b.input("kept", ("batch", "length"), BOOL), number(b, [1, 2]))


def spread(b: Builder, x: ir.Value) -> ir.Value:
    """Padding repeated for every query."""
    ends = b.op(
        "Concat",
        b.op("Shape", x, start=0, end=1),
        number(b, [1]),
        *[b.op("Shape", x, start=2, end=3)] * 2,
        axis=0,
    )
    return b.op("Expand", padding(b, x), ends)


def both(*masks: Mask) -> Mask:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        first, *others = (mask(b, x) for mask in masks)
        for other in others:
            first = b.op("And", first, other)
        return first

    return build


def table(*shape: int) -> Mask:
    return lambda b, x: b.weight("table", RNG.standard_normal(shape))


MASKS: dict[str, tuple[Mask, dict[str, Any], list[Any] | None]] = {
    "causal": (causal, {"causal": 1}, None),
    "causal within a window": (both(causal, near), {"causal": 1, "window": 3}, None),
    "nothing": (both(always, ahead), {"causal": None}, None),
    "padding": (padding, {"causal": None}, ["batch", 1, 1, "length"]),
    "padding repeated": (spread, {"causal": None}, ["batch", 1, 1, "length"]),
    "padding and nothing": (both(always, padding), {"causal": None}, ["batch", 1, 1, "length"]),
    "padding and causal": (both(causal, spread), {"causal": 1}, ["batch", 1, 1, "length"]),
    "all three": (both(near, padding, causal), {"causal": 1, "window": 3}, ["batch", 1, 1, "length"]),
    "ahead too": (near, {"causal": None, "window": None}, [1, 1, "length", "length"]),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_attributes_as_far_as_they_can_be(name: str) -> None:
    mask, attributes, added = MASKS[name]
    program = whole(mask)
    lowered(program, "main", sequences(program))
    (node,) = fused(program)
    assert {key: attribute(node, key) for key in attributes} == attributes
    bias = node.inputs[6] if len(node.inputs) > 6 else None
    assert (None if bias is None or bias.shape is None else [str(d) for d in bias.shape]) == (
        None if added is None else [str(d) for d in added]
    )


@pytest.mark.parametrize("shape", [(LENGTH,), (1, LENGTH), (4, 1, LENGTH), (1, 4, 1, LENGTH)])
def test_biases_get_four_axes(shape: tuple[int, ...]) -> None:
    program = whole(table(*shape), length=LENGTH)
    lowered(program, "main", sequences(program)[1:])
    bias = fused(program)[0].inputs[6]
    assert bias is not None and bias.shape is not None and len(bias.shape) == 4


def test_layers_share_what_is_made_of_a_mask() -> None:
    b = Builder()
    x = b.input("q", ("batch", 2, "length", SIZE))
    mask = padding(b, x)
    b.output(b.op("Attention", b.op("Attention", x, x, x, mask), x, x, mask), "y")
    program = b.program()
    lowered(program, "main", sequences(program))
    assert [n.op_type for n in program.main.graph].count("Where") == 1


@pytest.mark.parametrize("behind", [False, True])
def test_factors_of_query_and_key_are_part_of_the_scale(behind: bool) -> None:
    b = Builder()
    x = b.input("x", ("batch", "length", 2 * SIZE))

    def head(factor: float, op_type: str) -> ir.Value:
        def scaled(value: ir.Value) -> ir.Value:
            return b.op(op_type, value, number(b, factor, np.float32)) if op_type else value

        split = b.op("Reshape", x if behind else scaled(x), number(b, [0, 0, 2, SIZE]))
        turned = b.op("Transpose", split, perm=[0, 2, 1, 3])
        return scaled(turned) if behind else turned

    b.output(b.op("Attention", head(0.5, "Mul"), head(4.0, "Div"), head(1.0, ""), scale=2.0), "y")
    program = b.program()
    lowered(program, "main", [{"x": RNG.standard_normal((2, LENGTH, 2 * SIZE)).astype(np.float32)}])
    (node,) = fused(program)
    assert attribute(node, "scale") == pytest.approx(0.25)
    assert {"Mul", "Div"}.isdisjoint(n.op_type for n in program.main.graph)


def test_what_no_kernel_does_is_left_with_its_reason() -> None:
    b = Builder()
    x = b.input("x", ("batch", 2, "length", SIZE))
    past = b.input("past", ("batch", 2, "before", SIZE))
    short = b.input("short", ("length", "other"), BOOL)
    unknown = b.input("unknown", ("batch", None, "length", SIZE))
    half = b.op("Cast", x, to=ir.DataType.FLOAT16)
    b.output(b.op("Attention", x, x, x, None, past, past), "a")
    b.output(b.op("Attention", x, x, x, short), "b")
    b.output(b.op("Attention", x, x, x, always(b, x)), "f")  # hides all keys but the first
    b.output(b.op("Attention", unknown, unknown, unknown), "c")
    b.output(b.op("Attention", half, half, half), "d")
    b.output(b.ops("Attention", x, x, x, outputs=4)[3], "e")
    found = reasons(run_pass(NativeAttention(), b.program()))
    for reason in (
        "it concatenates a cache",
        "its mask is not known to cover all keys (other of length)",
        "its mask is not known to cover all keys (1 of length)",
        "number of heads or head size is not static",
        "the kernel takes float32",
        "its scores are read too",
    ):
        assert reason in found


# The cache


def cached(**kind: Any) -> tuple[Program, Layers]:
    layers = Layers(layers=1)
    program = layers.program()
    if kind:
        block_weights(program, lambda name, w: quantized(w, **kind) if w.shape[1] % 32 == 0 else None)
    for step in (NativeAttention(), NativeLinear()):
        run_pass(step, program)
    return program, layers


@pytest.mark.parametrize(("name", "tolerance"), [("fp16", 1e-3), ("int8", 3e-2)])
def test_a_narrow_cache_computes_the_same_but_for_its_rounding(name: str, tolerance: float) -> None:
    program, layers = cached()
    feed = layers.feeds([4, 0, 7], 3)
    wanted = evaluate(program.entries["decode"], feed)
    assert run_pass(NativeCache(name), program).changed == 2
    specs = {spec.name: spec for spec in program.inputs("decode")}
    narrow = {
        key: packed(array, specs[key].dtype.numpy()) if key.startswith("past_") and array.ndim == 4 else array
        for key, array in feed.items()
    }
    got = evaluate(program.entries["decode"], narrow)
    for key, array in wanted.items():
        if key.startswith("present"):
            assert (
                got[key].shape
                == specs[key.replace("present", "past")].shape[:0]
                + narrow[key.replace("present", "past")].shape
            )
            assert np.abs(unpacked(got[key]) - array).max() < tolerance * np.abs(array).max()
    assert np.abs(got["logits"] - wanted["logits"]).max() < tolerance * np.abs(wanted["logits"]).max()


def test_the_cache_is_as_wide_as_the_weights_ask() -> None:
    def dtype(program: Program) -> ir.DataType:
        run_pass(NativeCache(), program)
        return program.inputs("decode")[3].dtype

    assert dtype(cached()[0]) == ir.DataType.FLOAT
    assert dtype(cached(bits=4, offset=True)[0]) == ir.DataType.FLOAT16
    rounded, _ = cached()
    run_pass(NativeWeights("fp16"), rounded)
    assert dtype(rounded) == ir.DataType.FLOAT16
    with pytest.raises(OptionError, match="one of auto, fp32, fp16, int8"):
        NativeCache("int4")


def test_a_cache_that_others_read_stays() -> None:
    layers = Layers(layers=1)
    program = layers.program()
    assert "not attention alone" in reasons(run_pass(NativeCache("fp16"), program))


@pytest.mark.parametrize("width", [1, 8, 13])
def test_int8_rows_hold_their_scale_behind_their_codes(width: int) -> None:
    rows = RNG.standard_normal((2, 3, width)).astype(np.float32)
    rows[0, 0] = 0
    held = packed(rows, np.dtype(np.int8))
    assert held.shape == (2, 3, width + 4)
    scale = held[..., width:].copy().view(np.float32)[..., 0]
    np.testing.assert_allclose(scale, np.abs(rows).max(-1) / 127, rtol=1e-6)
    assert np.abs(unpacked(held) - rows).max() <= scale.max() / 2 * 1.0001


def test_ids_of_every_batch_are_int64() -> None:
    program, _ = cached()
    assert program.inputs("decode")[0].dtype == INT64
