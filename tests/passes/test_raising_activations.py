"""raise-gelu, raise-sigmoid, raise-hard-swish: all orders of their arithmetic, and what must stay."""

from __future__ import annotations

import math
from typing import Any

import pytest
from miaotui.compiler.ir.printer import print_program
from miaotui.passes.base import PassContext
from miaotui.passes.raising import RaiseGelu, RaiseHardSwish, RaiseSigmoid
from support.graphs import graph, normal
from support.rewriting import check, operators, reasons

SIGNATURE = "(float[n, 8] x) => (float[n, 8] y)"
FEEDS = [{"x": normal(5, 8) * 2}, {"x": normal(1, 8) * 5}]
NUMBERS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "six": 6.0, "zero": 0.0, "root2": math.sqrt(2),
    "root_half": math.sqrt(0.5), "k": math.sqrt(2 / math.pi), "c": 0.044715,
    "ck": 0.044715 * math.sqrt(2 / math.pi),
}  # fmt: skip

ERF = {
    "x half first": "d = Div(x, root2) e = Erf(d) s = Add(e, one) h = Mul(x, half) y = Mul(h, s)",
    "x times sum first": "d = Div(x, root2) e = Erf(d) s = Add(one, e) p = Mul(x, s) y = Mul(p, half)",
    "half of the sum": "d = Mul(x, root_half) e = Erf(d) s = Add(e, one) h = Mul(half, s) y = Mul(h, x)",
    "halved by division": "d = Mul(root_half, x) e = Erf(d) s = Add(e, one) p = Mul(s, x) y = Div(p, two)",
    "multiplied out": "d = Div(x, root2) e = Erf(d) h = Mul(x, half) p = Mul(h, e) y = Add(h, p)",
}
TANH = {
    "pow": "q = Pow(x, three) w = Mul(q, c) a = Add(x, w) i = Mul(a, k)",
    "products": "q = Mul(x, x) u = Mul(q, x) w = Mul(c, u) a = Add(w, x) i = Mul(k, a)",
    "fast": "q = Mul(x, c) u = Mul(q, x) w = Add(u, one) v = Mul(x, k) i = Mul(v, w)",
    "factored": "q = Mul(x, x) u = Mul(q, ck) w = Add(u, k) i = Mul(x, w)",
}


@pytest.mark.parametrize("body", ERF.values(), ids=ERF)
def test_raises_gelu_by_erf_in_every_order(body: str) -> None:
    program = graph(SIGNATURE, body, **NUMBERS)
    check(RaiseGelu(), program, FEEDS)
    assert operators(program) == {"Gelu": 1}


@pytest.mark.parametrize("body", TANH.values(), ids=TANH)
def test_raises_gelu_by_tanh_in_every_order(body: str) -> None:
    program = graph(
        SIGNATURE, f"{body} t = Tanh(i) s = Add(t, one) h = Mul(s, half) y = Mul(x, h)", **NUMBERS
    )
    check(RaiseGelu(), program, FEEDS)
    assert operators(program) == {"Gelu": 1}
    assert next(iter(program.main.graph)).attributes["approximate"].value == "tanh"


def test_raises_gelu_of_a_product() -> None:
    body = f"u = Mul(x0, x0) x = Mul(u, three) {ERF['x half first']}"
    program = graph("(float[n, 8] x0) => (float[n, 8] y)", body, **NUMBERS)
    check(RaiseGelu(), program, [{"x0": normal(3, 8)}])
    assert operators(program) == {"Mul": 2, "Gelu": 1}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("d = Mul(x, half) e = Erf(d) s = Add(e, one) h = Mul(x, half) y = Mul(h, s)", "not x/√2"),
        ("d = Div(x, root2) e = Erf(d) s = Add(e, one) h = Mul(x, k) y = Mul(h, s)", "x/2 * (1 + it)"),
        ("d = Div(x, root2) e = Erf(d) s = Add(e, two) h = Mul(x, half) y = Mul(h, s)", "x/2 * (1 + it)"),
    ],
    ids=["argument", "factor", "summand"],
)
def test_leaves_what_is_nearly_gelu(body: str, reason: str) -> None:
    program = graph(SIGNATURE, body, **NUMBERS)
    before = print_program(program)
    result = RaiseGelu().run(program, PassContext())
    assert not result.changed and reason in reasons(result)
    assert print_program(program) == before


def test_leaves_gelu_whose_erf_is_a_graph_output() -> None:
    program = graph("(float[n, 8] x) => (float[n, 8] y, float[n, 8] e)", ERF["x half first"], **NUMBERS)
    result = RaiseGelu().run(program, PassContext())
    assert not result.changed and "used once" in reasons(result)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("n = Neg(x) e = Exp(n) a = Add(e, one) y = Div(one, a)", {"Sigmoid": 1}),
        ("n = Neg(x) e = Exp(n) a = Add(one, e) y = Reciprocal(a)", {"Sigmoid": 1}),
        ("n = Neg(x) e = Exp(n) a = Add(one, e) y = Div(x, a)", {"Sigmoid": 1, "Mul": 1}),
    ],
    ids=["quotient", "reciprocal", "silu"],
)
def test_raises_sigmoid(body: str, expected: dict[str, int]) -> None:
    program = graph(SIGNATURE, body, **NUMBERS)
    check(RaiseSigmoid(), program, FEEDS)
    assert operators(program) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Add(x, three) e = Clip(a, zero, six) p = Mul(x, e) y = Div(p, six)", {"HardSwish": 1}),
        ("a = Add(three, x) e = Clip(a, zero, six) p = Div(e, six) y = Mul(p, x)", {"HardSwish": 1}),
        ("a = Add(x, three) e = Clip(a, zero, six) y = Div(e, six)", {"HardSigmoid": 1}),
        ("e = HardSigmoid<alpha=0.16666667, beta=0.5>(x) y = Mul(x, e)", {"HardSwish": 1}),
        ("a = Add(x, two) e = Clip(a, zero, six) y = Div(e, six)", {"Add": 1, "Clip": 1, "Div": 1}),
    ],
    ids=["product first", "quotient first", "gate alone", "of hard sigmoid", "another summand"],
)
def test_raises_hard_swish_and_hard_sigmoid(body: str, expected: dict[str, Any]) -> None:
    program = graph(SIGNATURE, body, **NUMBERS)
    check(RaiseHardSwish(), program, FEEDS)
    assert operators(program) == expected


def test_leaves_gelu_whose_constant_adds_dimensions() -> None:
    constants = {**NUMBERS, "half": normal(1, 1, 1)}
    constants["half"][:] = 0.5
    program = graph("(float[n, 8] x) => (float[1, n, 8] y)", ERF["x half first"], **constants)
    result = RaiseGelu().run(program, PassContext())
    assert not result.changed and "changes the rank" in reasons(result)
