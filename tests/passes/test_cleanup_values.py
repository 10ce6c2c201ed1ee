"""remove-dead, remove-noops, eliminate-common, dedup-initializers: outputs, scopes and names survive."""

from __future__ import annotations

import numpy as np
import pytest
from miaotui.compiler.ir.printer import print_program
from miaotui.compiler.ir.provenance import sources
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP, DedupInitializers, EliminateCommon, RemoveDead, RemoveNoops
from support.graphs import graph, normal
from support.rewriting import check, operators, ort_run, reasons

X = [{"x": normal(2, 3)}, {"x": normal(4, 3)}]


@pytest.mark.parametrize(
    "body",
    [
        "i = Identity(x) y = Relu(i)",
        "i = Cast<to=1>(x) y = Relu(i)",
        "i = Dropout(x) y = Relu(i)",
        "i = Transpose<perm=[0, 1]>(x) y = Relu(i)",
        "i = Add(x, zero) y = Relu(i)",
        "i = Mul(one, x) y = Relu(i)",
        "i = Div(x, one) y = Relu(i)",
        "i = Slice(x, start, end, axis) y = Relu(i)",
        "i = Pad(x, none) y = Relu(i)",
        "i = Concat<axis=0>(x) y = Relu(i)",
        "i = Expand(x, ones) y = Relu(i)",
        "i = Sum(x) y = Relu(i)",
    ],
)
def test_operators_that_return_their_input_disappear(body: str) -> None:
    numbers = {
        "zero": 0.0,
        "one": 1.0,
        "start": [0],
        "end": [1 << 40],
        "axis": [1],
        "none": [0] * 4,
        "ones": [1, 1],
    }
    program = graph("(float[n, 3] x) => (float[n, 3] y)", body, **numbers)
    check(RemoveNoops(), program, X)
    assert operators(program) == {"Relu": 1}


@pytest.mark.parametrize(
    "body",
    [
        "i = Add(x, wide) y = Relu(i)",
        "i = Sub(zero, x) y = Relu(i)",
        "i = Div(one, x) y = Relu(i)",
        "i = Slice(x, last, first, axis, back) y = Relu(i)",
        "i = Dropout<seed=3>(x, one, on) y = Relu(i)",
    ],
    ids=["broadcasts", "negates", "inverts", "reverses", "trains"],
)
def test_operators_that_only_look_neutral_stay(body: str) -> None:
    numbers = {
        "zero": 0.0, "one": 1.0, "wide": np.zeros((4, 1, 3), np.float32), "last": [-1], "first": [-9],
        "axis": [1], "back": [-1], "on": np.array(True),
    }  # fmt: skip
    result = "float[4, n, 3] y" if "wide" in body else "float[n, 3] y"
    program = graph(f"(float[n, 3] x) => ({result})", body, **numbers)
    before = print_program(program)
    assert not RemoveNoops().run(program, PassContext()).changed
    assert print_program(program) == before


def test_an_identity_to_the_output_gives_it_its_name() -> None:
    program = graph("(float[n, 3] x) => (float[n, 3] y)", "a = Relu(x) y = Identity(a)")
    check(RemoveNoops(), program, X)
    (node,) = program.main.graph
    assert node.outputs[0].name == "y"
    assert {s.op for s in sources(node)} == {"Relu_0", "Identity_1"}


@pytest.mark.parametrize(
    ("signature", "body", "reason"),
    [
        ("(float[n, 3] x) => (float[n, 3] y)", "y = Identity(x)", "has to be computed"),
        (
            "(float[n, 3] x) => (float[3] y, float[n, 3] z)",
            "y = Identity(w) z = Relu(x)",
            "has to be computed",
        ),
        (
            "(float[n, 3] x) => (float[n, 3] y, float[n, 3] z)",
            "y = Relu(x) z = Identity(y)",
            "both values are graph",
        ),
    ],
    ids=["input", "initializer", "second output"],
)
def test_an_identity_that_an_output_needs_stays(signature: str, body: str, reason: str) -> None:
    program = graph(signature, body, w=normal(3))
    result = RemoveNoops().run(program, PassContext())
    assert not result.changed and reason in reasons(result)
    for step in CLEANUP:
        step.run(program, PassContext())
    assert set(ort_run(program, X[0])) == {o.name for o in program.main.graph.outputs}


def test_a_subgraph_does_not_return_an_outer_value_itself() -> None:
    body = """a = Relu(x)
        y = If (c) <then_branch = g1 () => (float[n, 3] t) { t = Identity(a) },
                    else_branch = g2 () => (float[n, 3] e) { i = Identity(a) e = Neg(i) }>"""
    program = graph("(float[n, 3] x, bool c) => (float[n, 3] y)", body)
    feeds = [{**feed, "c": np.array(flag)} for feed in X for flag in (True, False)]
    result = check(RemoveNoops(), program, feeds)[0]
    assert "inside it" in reasons(result)
    assert operators(program) == {"Relu": 1, "If": 1, "Identity": 1, "Neg": 1}


def test_equal_expressions_are_computed_once_and_keep_both_sources() -> None:
    body = """a = Exp(x) b = Exp(x) c = Softmax<axis=1>(a) d = Softmax<axis=1>(b) e = Softmax<axis=0>(b)
        f = Add(c, d) y = Add(f, e)"""
    program = graph("(float[n, 3] x) => (float[n, 3] y)", body)
    names = {n.name for n in program.main.graph}
    check(EliminateCommon(), program, X)
    assert operators(program) == {"Exp": 1, "Softmax": 2, "Add": 2}
    first = next(iter(program.main.graph))
    assert len(sources(first)) == 2 and len(names) == 7


def test_a_subgraph_reads_what_the_outer_graph_computed() -> None:
    body = """a = Exp(x)
        b = If (c) <then_branch = g1 () => (float[n, 3] t) { u = Exp(x) t = Neg(u) },
                    else_branch = g2 () => (float[n, 3] e) { v = Exp(x) e = Abs(v) }>
        y = Add(a, b)"""
    program = graph("(float[n, 3] x, bool c) => (float[n, 3] y)", body)
    check(EliminateCommon(), program, [{**feed, "c": np.array(flag)} for feed in X for flag in (True, False)])
    assert operators(program)["Exp"] == 1


def test_two_equal_outputs_stay_two() -> None:
    program = graph("(float[n, 3] x) => (float[n, 3] y, float[n, 3] z)", "y = Exp(x) z = Exp(x)")
    result = check(EliminateCommon(), program, X)[0]
    assert operators(program) == {"Exp": 2} and "both values are graph outputs" in reasons(result)


def test_random_operators_are_never_merged() -> None:
    body = "a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b)"
    program = graph("(float[n, 3] x) => (float[n, 3] y)", body)
    for step in CLEANUP:
        step.run(program, PassContext())
    assert operators(program) == {"RandomNormalLike": 2, "Sub": 1}


def test_what_nothing_reads_is_removed_in_subgraphs_too() -> None:
    body = """a = Exp(x) b = Neg(a)
        y = If (c) <then_branch = g1 () => (float[n, 3] t) { u = Exp(x) w = Neg(u) t = Abs(x) },
                    else_branch = g2 () => (float[n, 3] e) { e = Abs(x) }>"""
    program = graph("(float[n, 3] x, bool c) => (float[n, 3] y)", body, unused=normal(3))
    check(RemoveDead(), program, [{**X[0], "c": np.array(True)}])
    assert operators(program) == {"If": 1, "Abs": 2} and not program.main.graph.initializers


def test_equal_initializers_are_stored_once_but_not_across_dtypes_or_shapes() -> None:
    body = "a = Add(x, p) b = Add(a, q) c = Add(b, r) d = Cast<to=1>(s) y = Add(c, d)"
    zeros = np.zeros(3, np.float32)
    program = graph(
        "(float[n, 3] x) => (float[n, 3] y)",
        body,
        p=zeros,
        q=zeros.copy(),
        r=zeros[None],
        s=np.zeros(3, np.int32),
    )
    check(DedupInitializers(), program, X)
    assert set(program.main.graph.initializers) == {"p", "r", "s"}
