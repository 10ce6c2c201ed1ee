"""raise-layer-norm, raise-layer-norm-affine, raise-rms-norm: every spelling, and what must stay."""

from __future__ import annotations

import numpy as np
import pytest
from miaotui.compiler.ir.printer import print_program
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.raising import RaiseLayerNorm, RaiseLayerNormAffine, RaiseRmsNorm
from support.graphs import graph, normal
from support.rewriting import check, operators, reasons

SIGNATURE = "(float[b, s, 8] x) => (float[b, s, 8] y)"
FEEDS = [{"x": normal(2, 3, 8) * 3 + 1}, {"x": normal(1, 5, 8)}]
SQUARES = {"pow": "q = Pow(d, two)", "mul": "q = Mul(d, d)"}
ROOTS = {
    "div": "r = Sqrt(v) n = Div(d, r)",
    "reciprocal": "r = Sqrt(v) i = Reciprocal(r) n = Mul(i, d)",
    "one over": "r = Sqrt(v) i = Div(one, r) n = Mul(d, i)",
    "power": "i = Pow(v, minus_half) n = Mul(d, i)",
}
NUMBERS = {"two": 2.0, "one": 1.0, "minus_half": -0.5, "epsilon": 1e-5}


def layer_norm(
    square: str = SQUARES["pow"], root: str = ROOTS["div"], axes: str = "last", tail: str = ""
) -> Program:
    body = f"""m = ReduceMean({"x, " + axes}) d = Sub(x, m) {square} a = ReduceMean(q, {axes})
        v = Add(epsilon, a) {root} g = Mul(n, gamma) {tail or "y = Add(beta, g)"}"""
    return graph(SIGNATURE, body, gamma=normal(8), beta=normal(8), last=[-1], middle=[1], **NUMBERS)


@pytest.mark.parametrize("root", ROOTS.values(), ids=ROOTS)
@pytest.mark.parametrize("square", SQUARES.values(), ids=SQUARES)
def test_raises_layer_norm_in_every_spelling(square: str, root: str) -> None:
    program = layer_norm(square, root)
    check(RaiseLayerNorm(), program, FEEDS)
    assert operators(program) == {"LayerNormalization": 1}
    (node,) = program.main.graph
    assert node.attributes["axis"].value == -1
    assert node.attributes["epsilon"].value == pytest.approx(1e-5)


def test_raises_layer_norm_with_axes_as_attribute_as_old_opsets_have_them() -> None:
    body = """m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) q = Pow(d, two) a = ReduceMean<axes=[-1]>(q)
        v = Add(a, epsilon) r = Sqrt(v) n = Div(d, r) g = Mul(n, gamma) y = Add(g, beta)"""
    program = graph(SIGNATURE, body, opset=11, gamma=normal(8), beta=normal(8), **NUMBERS)
    check(RaiseLayerNorm(), program, FEEDS)
    assert operators(program) == {"LayerNormalization": 1}


def test_raises_layer_norm_without_weight_and_bias() -> None:
    body = """m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) a = ReduceMean(q, last)
        v = Add(a, epsilon) r = Sqrt(v) y = Div(d, r)"""
    program = graph(SIGNATURE, body, last=[-1], **NUMBERS)
    check(RaiseLayerNorm(), program, FEEDS)
    assert operators(program) == {"LayerNormalization": 1}


def test_raises_layer_norm_over_two_axes() -> None:
    body = """m = ReduceMean(x, two_axes) d = Sub(x, m) q = Mul(d, d) a = ReduceMean(q, two_axes)
        v = Add(a, epsilon) r = Sqrt(v) n = Div(d, r) y = Mul(n, gamma)"""
    signature = "(float[b, 3, 8] x) => (float[b, 3, 8] y)"
    program = graph(signature, body, two_axes=[1, 2], gamma=normal(3, 8), **NUMBERS)
    check(RaiseLayerNorm(), program, [{"x": normal(2, 3, 8)}])
    assert operators(program) == {"LayerNormalization": 1}


def test_raises_layer_norm_of_keras_with_rsqrt_times_gamma() -> None:
    body = """m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) a = ReduceMean(q, last)
        v = Add(a, epsilon) r = Sqrt(v) i = Reciprocal(r) k = Mul(i, gamma)
        p = Mul(x, k) o = Mul(m, k) t = Sub(beta, o) y = Add(p, t)"""
    program = graph(SIGNATURE, body, gamma=normal(8), beta=normal(8), last=[-1], **NUMBERS)
    check(RaiseLayerNormAffine(), program, FEEDS, tolerance=1e-5)
    assert operators(program) == {"LayerNormalization": 1}


def rms_norm(weight: str = "g = Mul(gamma, n)", root: str = ROOTS["reciprocal"]) -> Program:
    body = f"""d = Identity(x) q = Pow(d, two) a = ReduceMean(q, last) v = Add(a, epsilon) {root} {weight}
        y = Identity(g)"""
    program = graph(SIGNATURE, body, gamma=normal(8), last=[-1], **NUMBERS)
    for step in CLEANUP:
        step.run(program, PassContext())
    return program


@pytest.mark.parametrize("root", ROOTS.values(), ids=ROOTS)
def test_raises_rms_norm_in_every_spelling(root: str) -> None:
    program = rms_norm(root=root)
    check(RaiseRmsNorm(), program, FEEDS)
    assert operators(program) == {"RMSNormalization": 1}


def test_raises_rms_norm_with_one_added_to_its_weight_as_gemma_has_it() -> None:
    program = rms_norm("w = Add(one, gamma) g = Mul(n, w)")
    check(RaiseRmsNorm(), program, FEEDS)
    assert operators(program) == {"RMSNormalization": 1}


def test_rms_norm_takes_over_the_casts_of_half_precision() -> None:
    body = """f = Cast<to=1>(x) q = Pow(f, two) a = ReduceMean(q, last) v = Add(a, epsilon) r = Sqrt(v)
        i = Reciprocal(r) n = Mul(f, i) h = Cast<to=10>(n) y = Mul(gamma, h)"""
    signature = "(float16[b, s, 8] x) => (float16[b, s, 8] y)"
    program = graph(signature, body, gamma=normal(8).astype(np.float16), last=[-1], **NUMBERS)
    RaiseRmsNorm().run(program, PassContext())
    assert operators(program) == {"RMSNormalization": 1}


def test_layer_norm_of_a_centred_rms_norm_is_one_layer_norm() -> None:
    body = "m = ReduceMean(x, last) d = Sub(x, m) y = RMSNormalization<axis=-1, epsilon=1e-5>(d, gamma)"
    program = graph(SIGNATURE, body, gamma=normal(8), last=[-1])
    check(RaiseLayerNorm(), program, FEEDS)
    assert operators(program) == {"LayerNormalization": 1}


@pytest.mark.parametrize("inside", ["d", "a", "r"])
def test_leaves_layer_norm_whose_inside_is_a_graph_output(inside: str) -> None:
    body = """m = ReduceMean(x, last) d = Sub(x, m) q = Pow(d, two) a = ReduceMean(q, last)
        v = Add(a, epsilon) r = Sqrt(v) n = Div(d, r) g = Mul(n, gamma) y = Add(g, beta)"""
    signature = f"(float[b, s, 8] x) => (float[b, s, 8] y, float[b, s, k] {inside})"
    program = graph(signature, body, gamma=normal(8), beta=normal(8), last=[-1], **NUMBERS)
    before = print_program(program)
    result = RaiseLayerNorm().run(program, PassContext())
    assert not result.changed
    assert f"{inside!r} inside the pattern is a graph output" in reasons(result)
    assert print_program(program) == before


def test_leaves_normalization_of_another_axis_than_the_last() -> None:
    program = layer_norm(axes="middle")
    before = print_program(program)
    assert not RaiseLayerNorm().run(program, PassContext()).changed
    assert print_program(program) == before


def test_leaves_mean_and_variance_of_different_axes() -> None:
    body = """m = ReduceMean(x, last) d = Sub(x, m) q = Pow(d, two) a = ReduceMean(q, middle)
        v = Add(a, epsilon) r = Sqrt(v) y = Div(d, r)"""
    program = graph(SIGNATURE, body, last=[-1], middle=[1], **NUMBERS)
    assert not RaiseLayerNorm().run(program, PassContext()).changed


def test_leaves_epsilon_that_is_not_a_constant() -> None:
    body = """m = ReduceMean(x, last) d = Sub(x, m) q = Pow(d, two) a = ReduceMean(q, last)
        v = Add(a, e) r = Sqrt(v) y = Div(d, r)"""
    signature = "(float[b, s, 8] x, float e) => (float[b, s, 8] y)"
    program = graph(signature, body, last=[-1], **NUMBERS)
    assert not RaiseLayerNorm().run(program, PassContext()).changed


def test_leaves_double_precision_with_the_reason() -> None:
    body = """m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) a = ReduceMean(q, last)
        v = Add(a, e) r = Sqrt(v) y = Div(d, r)"""
    signature = "(double[b, s, 8] x) => (double[b, s, 8] y)"
    program = graph(signature, body, last=[-1], e=np.array(1e-5))
    result = RaiseLayerNorm().run(program, PassContext())
    assert not result.changed and "the operator in float32" in reasons(result)


def test_weight_that_varies_stays_a_product_behind_the_norm() -> None:
    body = """m = ReduceMean(x, last) d = Sub(x, m) q = Mul(d, d) a = ReduceMean(q, last)
        v = Add(a, epsilon) r = Sqrt(v) n = Div(d, r) y = Mul(n, w)"""
    signature = "(float[b, s, 8] x, float[8] w) => (float[b, s, 8] y)"
    program = graph(signature, body, last=[-1], **NUMBERS)
    check(RaiseLayerNorm(), program, [{**feed, "w": normal(8)} for feed in FEEDS])
    assert operators(program) == {"LayerNormalization": 1, "Mul": 1}
