"""raise-attention and share-kv-heads: every exporter's scales, masks and guards, and what must stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.ir.printer import print_program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import MergeViews
from miaotui.passes.raising import RaiseAttention, RaiseFlatSoftmax, ShareKvHeads, SplitMergedHeads
from support.graphs import graph, normal
from support.rewriting import check, operators, reasons

SIGNATURE = "(float[b, 4, s, 8] q, float[b, 4, t, 8] k, float[b, 4, t, 8] v{}) => (float[b, 4, s, 8] y)"
NUMBERS = {
    "scale": 0.25, "four": 4.0, "root": 0.5, "zero": 0.0, "cap": 2.0, "low": -1e4,
    "lowest": float(np.finfo(np.float32).min), "infinite": -np.inf,
}  # fmt: skip
KEYS = "kt = Transpose<perm=[0, 1, 3, 2]>(k) "
END = " p = Softmax<axis=-1>(w) y = MatMul(p, v)"


def feeds(*shapes: tuple[int, int, int], **more: Any) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Queries, keys and values for each (batch, queries, keys), and a mask where ``more`` makes one."""
    return [
        {
            "q": normal(b, 4, s, 8), "k": normal(b, 4, t, 8), "v": normal(b, 4, t, 8),
            **{name: make(b, s, t) for name, make in more.items()},
        }
        for b, s, t in shapes
    ]  # fmt: skip


SIZES = ((2, 5, 5), (1, 3, 7))
SCALES = {
    "on scores": "m = MatMul(q, kt) w = Mul(m, scale)",
    "by division": "m = MatMul(q, kt) w = Div(m, four)",
    "on queries": "a = Mul(scale, q) w = MatMul(a, kt)",
    "on keys": "a = Mul(kt, scale) w = MatMul(q, a)",
    "split on both": "a = Mul(q, root) c = Mul(kt, root) w = MatMul(a, c)",
}


@pytest.mark.parametrize("body", SCALES.values(), ids=SCALES)
def test_raises_attention_with_the_scale_anywhere(body: str) -> None:
    program = graph(SIGNATURE.format(""), KEYS + body + END, **NUMBERS)
    check(RaiseAttention(), program, feeds(*SIZES))
    assert operators(program) == {"Attention": 1}
    assert next(iter(program.main.graph)).attributes["scale"].value == pytest.approx(0.25)


def test_raises_attention_without_scale_as_t5_has_it() -> None:
    program = graph(SIGNATURE.format(""), KEYS + "w = MatMul(q, kt)" + END)
    check(RaiseAttention(), program, feeds(*SIZES))
    assert next(iter(program.main.graph)).attributes["scale"].value == 1.0


def additive(*dims: str) -> Any:
    def make(b: int, s: int, t: int) -> np.ndarray[Any, Any]:
        named = {"b": b, "s": s, "t": t}
        shape = [named.get(d) or int(d) for d in dims]
        mask = np.where(np.random.default_rng(1).random(shape) > 0.4, 0, NUMBERS["lowest"]).astype(np.float32)
        mask[..., 0] = 0
        return mask

    return make


@pytest.mark.parametrize(
    "dims",
    [
        ("b", "1", "s", "t"),
        ("b", "1", "1", "t"),
        ("1", "4", "s", "t"),
        ("s", "t"),
        ("1", "1", "1", "t"),
        ("t",),
    ],
    ids="x".join,
)
def test_additive_mask_of_any_broadcast_shape_reaches_attention_as_onnx_runtime_needs_it(
    dims: tuple[str, ...],
) -> None:
    signature = SIGNATURE.format(f", float[{', '.join(dims)}] mask")
    program = graph(signature, KEYS + "m = MatMul(q, kt) c = Mul(m, scale) w = Add(mask, c)" + END, **NUMBERS)
    check(RaiseAttention(), program, feeds(*SIZES, mask=additive(*dims)))
    assert operators(program)["Attention"] == 1 and "Softmax" not in operators(program)
    assert ("Expand" in operators(program)) == (dims[-2:] != ("s", "t"))


def allowed(b: int, s: int, t: int) -> np.ndarray[Any, Any]:
    mask = np.random.default_rng(2).random((b, 1, s, t)) > 0.4
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("fill", ["low", "lowest", "infinite"])
@pytest.mark.parametrize("inverted", [False, True], ids=["kept where true", "filled where true"])
def test_boolean_mask_is_raised_with_any_fill(fill: str, inverted: bool) -> None:
    choice = f"w = Where(mask, {fill}, c)" if inverted else f"w = Where(mask, c, {fill})"
    signature = SIGNATURE.format(", bool[b, 1, s, t] mask")
    program = graph(signature, KEYS + "m = MatMul(q, kt) c = Mul(m, scale) " + choice + END, **NUMBERS)
    made = (lambda b, s, t: ~allowed(b, s, t)) if inverted else allowed
    check(RaiseAttention(), program, feeds(*SIZES, mask=made))
    assert operators(program)["Attention"] == 1


def test_fully_masked_rows_stay_uniform_where_the_fill_is_finite() -> None:
    signature = SIGNATURE.format(", bool[b, 1, s, t] mask")
    body = "m = MatMul(q, kt) c = Mul(m, scale) w = Where(mask, c, low)"
    program = graph(signature, KEYS + body + END, **NUMBERS)
    check(RaiseAttention(), program, feeds((2, 3, 3), mask=lambda b, s, t: np.zeros((b, 1, s, t), bool)))


def test_bias_and_mask_are_summed_as_alibi_and_t5_need() -> None:
    signature = SIGNATURE.format(", float[1, 4, s, t] bias, bool[b, 1, s, t] mask")
    body = "m = MatMul(q, kt) c = Mul(m, scale) a = Add(c, bias) w = Where(mask, a, lowest)"
    program = graph(signature, KEYS + body + END, **NUMBERS)
    check(RaiseAttention(), program, feeds(*SIZES, mask=allowed, bias=lambda b, s, t: normal(1, 4, s, t)))
    assert operators(program)["Attention"] == 1


def test_soft_cap_before_the_mask_is_raised_as_gemma_has_it() -> None:
    signature = SIGNATURE.format(", float[b, 1, s, t] mask")
    body = (
        "m = MatMul(q, kt) c = Mul(m, scale) d = Div(c, cap) t0 = Tanh(d) u = Mul(t0, cap) w = Add(u, mask)"
    )
    program = graph(signature, KEYS + body + END, **NUMBERS)
    check(RaiseAttention(), program, feeds(*SIZES, mask=additive("b", "1", "s", "t")))
    (node,) = program.main.graph
    assert node.attributes["softcap"].value == 2.0 and node.attributes["scale"].value == pytest.approx(0.25)


def test_soft_cap_after_the_mask_is_left() -> None:
    signature = SIGNATURE.format(", float[b, 1, s, t] mask")
    body = "c = MatMul(q, kt) a = Add(c, mask) d = Div(a, cap) t0 = Tanh(d) w = Mul(t0, cap)"
    program = graph(signature, KEYS + body + END, **NUMBERS)
    assert not RaiseAttention().run(program, PassContext()).changed


def test_guard_against_rows_of_nan_goes_into_attention() -> None:
    signature = SIGNATURE.format(", float[b, 1, s, t] mask")
    body = """m = MatMul(q, kt) w = Add(m, mask) p = Softmax<axis=-1>(w) n = IsNaN(p) g = Where(n, zero, p)
        y = MatMul(g, v)"""
    program = graph(signature, KEYS + body, **NUMBERS)
    check(
        RaiseAttention(),
        program,
        feeds(*SIZES, mask=lambda b, s, t: np.full((b, 1, s, t), -np.inf, np.float32)),
    )
    assert operators(program) == {"Attention": 1}


def test_keys_transposed_once_from_their_heads_keep_one_transpose() -> None:
    signature = "(float[b, 4, s, 8] q, float[b, t, 4, 8] k, float[b, 4, t, 8] v) => (float[b, 4, s, 8] y)"
    program = graph(signature, "kt = Transpose<perm=[0, 2, 3, 1]>(k) w = MatMul(q, kt)" + END)
    made = [{**f, "k": f["k"].transpose(0, 2, 1, 3)} for f in feeds(*SIZES)]
    check(RaiseAttention(), program, made)
    assert operators(program) == {"Attention": 1, "Transpose": 1}
    assert next(iter(program.main.graph)).attributes["perm"].value == (0, 2, 1, 3)


def test_three_dimensional_attention_is_raised_as_one_head() -> None:
    signature = "(float[b, s, 8] q, float[b, t, 8] k, float[b, t, 8] v) => (float[b, s, 8] y)"
    program = graph(signature, "kt = Transpose<perm=[0, 2, 1]>(k) w = MatMul(q, kt)" + END)
    check(RaiseAttention(), program, [{"q": normal(2, 3, 8), "k": normal(2, 5, 8), "v": normal(2, 5, 8)}])
    assert operators(program)["Attention"] == 1


def test_softmax_flattened_by_an_old_opset_is_raised_first() -> None:
    body = KEYS + "w = MatMul(q, kt) p = Softmax<axis=3>(w) y = MatMul(p, v)"
    program = graph(SIGNATURE.format(""), body, opset=11)
    check([RaiseFlatSoftmax(), RaiseAttention()], program, feeds(*SIZES))
    assert operators(program) == {"Attention": 1}


def test_heads_merged_into_the_batch_are_split_again() -> None:
    body = """qm = Reshape(q, merged) km = Reshape(k, merged) vm = Reshape(v, merged)
        kt = Transpose<perm=[0, 2, 1]>(km) m = MatMul(qm, kt) c = Mul(m, scale) w4 = Reshape(c, scores)
        p = Softmax<axis=-1>(w4) pm = Reshape(p, merged_scores) o = MatMul(pm, vm) y = Reshape(o, heads)"""
    signature = "(float[2, 4, 5, 8] q, float[2, 4, 5, 8] k, float[2, 4, 5, 8] v) => (float[2, 4, 5, 8] y)"
    program = graph(
        signature,
        body,
        merged=[8, 5, 8],
        merged_scores=[8, 5, 5],
        scores=[2, 4, 5, 5],
        heads=[2, 4, 5, 8],
        **NUMBERS,
    )
    check([SplitMergedHeads(), MergeViews(), MergeViews(), RaiseAttention()], program, feeds((2, 5, 5)))
    assert operators(program)["Attention"] == 1 and "Softmax" not in operators(program)


@pytest.mark.parametrize(
    ("extra", "output", "reason"),
    [
        ("", "float[b, 4, s, t] p", "'p' inside the pattern is a graph output"),
        ("z = Relu(m)", "float[b, 4, s, t] z", "'m' inside the pattern is read elsewhere"),
    ],
    ids=["probabilities are an output", "scores are read elsewhere"],
)
def test_leaves_attention_whose_inside_is_needed(extra: str, output: str, reason: str) -> None:
    signature = SIGNATURE.format("")[:-1] + f", {output})"
    program = graph(signature, KEYS + f"m = MatMul(q, kt) w = Mul(m, scale) {extra}" + END, **NUMBERS)
    before = print_program(program)
    result = RaiseAttention().run(program, PassContext())
    assert not result.changed and reason in reasons(result)
    assert print_program(program) == before


def test_leaves_a_scale_after_the_mask_and_a_fill_that_is_not_low() -> None:
    signature = SIGNATURE.format(", float[b, 1, s, t] mask")
    program = graph(signature, KEYS + "m = MatMul(q, kt) a = Add(m, mask) w = Mul(a, scale)" + END, **NUMBERS)
    assert not RaiseAttention().run(program, PassContext()).changed
    signature = SIGNATURE.format(", bool[b, 1, s, t] mask")
    program = graph(signature, KEYS + "m = MatMul(q, kt) w = Where(mask, m, zero)" + END, **NUMBERS)
    assert not RaiseAttention().run(program, PassContext()).changed


def test_leaves_softmax_over_another_axis() -> None:
    program = graph(SIGNATURE.format(""), KEYS + "w = MatMul(q, kt) p = Softmax<axis=1>(w) y = MatMul(p, v)")
    assert not RaiseAttention().run(program, PassContext()).changed


def repeated(name: str) -> str:
    return (
        f"u{name} = Unsqueeze({name}, two) e{name} = Expand(u{name}, pairs) r{name} = Reshape(e{name}, flat) "
    )


def test_repeated_key_and_value_heads_are_shared() -> None:
    signature = "(float[3, 4, 5, 8] q, float[3, 2, 5, 8] k, float[3, 2, 5, 8] v) => (float[3, 4, 5, 8] y)"
    body = repeated("k") + repeated("v") + "y = Attention(q, rk, rv)"
    program = graph(signature, body, two=[2], pairs=[3, 2, 2, 5, 8], flat=[3, 4, 5, 8])
    check(
        ShareKvHeads(), program, [{"q": normal(3, 4, 5, 8), "k": normal(3, 2, 5, 8), "v": normal(3, 2, 5, 8)}]
    )
    assert operators(program) == {"Attention": 1}


def test_heads_repeated_in_another_order_are_left() -> None:
    signature = "(float[3, 4, 5, 8] q, float[3, 2, 5, 8] k, float[3, 2, 5, 8] v) => (float[3, 4, 5, 8] y)"
    body = (repeated("k") + repeated("v")).replace("two)", "one)") + "y = Attention(q, rk, rv)"
    program = graph(signature, body, one=[1], pairs=[3, 2, 2, 5, 8], flat=[3, 4, 5, 8])
    before = print_program(program)
    assert not ShareKvHeads().run(program, PassContext()).changed
    assert print_program(program) == before


@pytest.mark.parametrize(
    ("q", "k", "v", "reason"),
    [
        ("b, 4, s, 8", "1, 4, t, 8", "b, 4, t, 8", "broadcast over the batch"),
        ("b, 1, s, 8", "b, 4, t, 8", "b, 4, t, 8", "broadcast over heads"),
        ("b, 4, s, 8", "b, 1, t, 8", "b, 4, t, 8", "broadcast over heads"),
    ],
)
def test_leaves_products_that_broadcast_where_attention_does_not(q: str, k: str, v: str, reason: str) -> None:
    signature = f"(float[{q}] q, float[{k}] k, float[{v}] v) => (float[b, 4, s, 8] y)"
    program = graph(signature, KEYS + "w = MatMul(q, kt)" + END)
    result = RaiseAttention().run(program, PassContext())
    assert not result.changed and reason in reasons(result)


def test_one_key_and_value_head_for_all_queries_is_raised() -> None:
    signature = "(float[b, 4, s, 8] q, float[b, 1, t, 8] k, float[b, 1, t, 8] v) => (float[b, 4, s, 8] y)"
    program = graph(signature, KEYS + "w = MatMul(q, kt)" + END)
    feed = {"q": normal(2, 4, 3, 8), "k": normal(2, 1, 5, 8), "v": normal(2, 1, 5, 8)}
    check(RaiseAttention(), program, [feed])
    assert operators(program) == {"Attention": 1}


def test_leaves_a_mask_that_widens_the_scores() -> None:
    inputs = "float[1, 4, 1, 8] q, float[1, 4, t, 8] k, float[1, 4, t, 8] v, float[b, 1, s, t] m"
    signature = f"({inputs}) => (float[b, 4, s, 8] y)"
    program = graph(signature, KEYS + "c = MatMul(q, kt) w = Add(c, m)" + END)
    result = RaiseAttention().run(program, PassContext())
    assert not result.changed and "the mask broadcasts the scores" in reasons(result)


def test_heads_repeated_before_they_are_turned_and_rotated_are_shared_too() -> None:
    program = graph(
        "(float[b,4,s,8] q, float[b,s,2,1,8] k, float[b,s,2,1,8] v, float[b,s,4] cos, float[b,s,4] sin)"
        " => (float[b,4,s,8] y)",
        """
        wide_k = Expand(k, wide)  flat_k = Reshape(wide_k, flat)
        turned_k = Transpose<perm=[0,2,1,3]>(flat_k)  keys = RotaryEmbedding(turned_k, cos, sin)
        wide_v = Expand(v, wide)  flat_v = Reshape(wide_v, flat)  values = Transpose<perm=[0,2,1,3]>(flat_v)
        y = Attention(q, keys, values)
        """,
        wide=[1, 1, 1, 2, 1], flat=[0, 0, 4, 8],
    )  # fmt: skip
    random = np.random.default_rng(0)
    shapes = {
        "q": (2, 4, 5, 8),
        "k": (2, 5, 2, 1, 8),
        "v": (2, 5, 2, 1, 8),
        "cos": (2, 5, 4),
        "sin": (2, 5, 4),
    }
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    check(ShareKvHeads(), program, [feeds])
    (node,) = [n for n in program.main.graph if n.op_type == "Attention"]
    assert [value.shape[1] for value in node.inputs[1:3]] == [2, 2]
