"""fold-constants and fold-shapes: what is computed early, what is too large, random or unknown."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.printer import print_program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP, FoldConstants, FoldShapes
from support.graphs import graph, normal
from support.rewriting import check, operators, reasons

X = [{"x": normal(2, 3, 8)}, {"x": normal(4, 5, 8)}]
SIGNATURE = "(float[b, s, 8] x) => (float[b, s, 8] y)"


def test_arithmetic_on_constants_is_computed() -> None:
    body = "a = Mul(p, p) r = Sqrt(a) c = Concat<axis=0>(r, p) w = Slice(c, zero, eight) y = Mul(x, w)"
    program = graph(SIGNATURE, body, p=normal(8), zero=[0], eight=[8])
    check(FoldConstants(), program, X)
    assert operators(program) == {"Mul": 1}
    assert "w" in program.main.graph.initializers


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("w = Expand(one, wide) z = ReduceSum(w) y = Mul(x, z)", "more than 65536 elements"),
        ("w = Mul(column, row) z = ReduceSum(w) y = Mul(x, z)", "more than 65536 elements"),
        ("w = Abs(large) z = ReduceSum(w) y = Mul(x, z)", "more than 65536 elements"),
    ],
    ids=["expanded", "broadcast", "weight"],
)
def test_large_results_and_weights_are_not_folded(body: str, reason: str) -> None:
    program = graph(
        SIGNATURE,
        body,
        one=1.0,
        wide=[300, 300],
        column=normal(300, 1),
        row=normal(1, 300),
        large=normal(70000),
    )
    before = print_program(program)
    result = FoldConstants().run(program, PassContext())
    assert not result.changed and reason in reasons(result)
    assert print_program(program) == before


def test_random_operators_and_defaults_a_caller_may_override_are_not_folded() -> None:
    program = graph(SIGNATURE, "r = RandomNormal<shape=[8]>() y = Mul(x, r)")
    assert not FoldConstants().run(program, PassContext()).changed
    program = graph(
        "(float[b, s, 8] x, float[8] w) => (float[b, s, 8] y)", "a = Neg(w) y = Mul(x, a)", w=normal(8)
    )
    assert not FoldConstants().run(program, PassContext()).changed


def test_a_constant_output_stays_computed() -> None:
    program = graph(
        "(float[b, s, 8] x) => (float[b, s, 8] y, float[8] z)", "z = Neg(p) y = Relu(x)", p=normal(8)
    )
    assert not FoldConstants().run(program, PassContext()).changed


def test_constants_inside_a_subgraph_are_folded_there() -> None:
    body = """y = If (c) <then_branch = g1 () => (float[b, s, 8] t) { u = Neg(p) t = Mul(x, u) },
                          else_branch = g2 () => (float[b, s, 8] e) { e = Abs(x) }>"""
    program = graph("(float[b, s, 8] x, bool c) => (float[b, s, 8] y)", body, p=normal(8))
    check(FoldConstants(), program, [{**X[0], "c": np.array(flag)} for flag in (True, False)])
    assert "Neg" not in operators(program)


SPLIT = """sh = Shape(x) b0 = Gather(sh, zero) s0 = Gather(sh, one) bu = Unsqueeze(b0, axis)
    su = Unsqueeze(s0, axis) t = Concat<axis=0>(bu, su, four, minus)
    r = Reshape(x, t) z = Relu(r) y = Reshape(z, sh)"""
SIZES = {
    "zero": np.array(0), "one": np.array(1), "axis": [0], "four": [4], "minus": [-1], "two": np.array(2),
}  # fmt: skip


def test_reshape_targets_become_zeros_and_one_minus_one() -> None:
    program = graph(SIGNATURE, SPLIT, **SIZES)
    for step in CLEANUP:
        check(step, program, X)
    assert operators(program) == {"Relu": 1, "Reshape": 2}
    first, _, last = program.main.graph
    assert first.inputs[1] is not None and first.inputs[1].const_value is not None
    assert first.inputs[1].const_value.numpy().tolist() == [0, 0, 4, -1]
    assert first.outputs[0].shape is not None and first.outputs[0].shape[3] == 2
    assert last.inputs[1] is not None and last.inputs[1].const_value is not None


def test_sizes_that_are_static_are_constants_and_symbols_are_not() -> None:
    body = "sh = Shape(x) n = Gather(sh, two) f = Cast<to=1>(n) r = Sqrt(f) y = Div(x, r)"
    program = graph(SIGNATURE, body, **SIZES)
    for step in CLEANUP:
        check(step, program, X)
    assert operators(program) == {"Div": 1}
    body = "sh = Shape(x) n = Gather(sh, one) f = Cast<to=1>(n) y = Div(x, f)"
    program = graph(SIGNATURE, body, **SIZES)
    for step in CLEANUP:
        check(step, program, X)
    assert operators(program)["Shape"] == 1


def test_an_exporters_formula_for_a_size_gives_way_to_the_inputs_name() -> None:
    program = graph(SIGNATURE, "r = Relu(x) y = Neg(r)")
    (relu, _) = program.main.graph
    relu.outputs[0].shape = ir.Shape(["b", "((s**2)//s)", 8])
    assert FoldShapes().run(program, PassContext()).changed
    assert str(relu.outputs[0].shape) == "[b,s,8]"


def test_an_expand_to_its_own_symbolic_shape_disappears() -> None:
    program = graph(SIGNATURE, "sh = Shape(x) e = Expand(x, sh) y = Relu(e)")
    check(FoldShapes(), program, X)
    assert operators(program) == {"Relu": 1}


def test_an_expand_of_old_torch_with_its_choice_between_one_and_a_size_is_understood() -> None:
    body = """sh = Shape(x) o = ConstantOfShape<value = int64[1] {1}>(three) m = Mul(o, minus)
        q = Equal(sh, m) t = Where(q, o, sh) e = Expand(x, t) y = Relu(e)"""
    program = graph(SIGNATURE, body, three=[3], minus=np.array(-1))
    check(FoldShapes(), program, X)
    assert operators(program) == {"Relu": 1}


def test_a_reshape_beside_a_dimension_that_may_be_empty_keeps_its_target() -> None:
    body = """i = NonZero(x) sh = Shape(i) n = Gather(sh, one) nu = Unsqueeze(n, axis)
        t = Concat<axis=0>(nu, four) z = Transpose<perm=[1, 0]>(i) w = Concat<axis=1>(z, z)
        v = Slice(w, axis, four, last) y = Reshape(v, t)"""
    signature = "(float[p] x) => (int64[k, 4] y)"
    sizes = {"one": np.array(1), "axis": [0], "four": [4], "last": [1]}
    body = body.replace("Concat<axis=1>(z, z)", "Concat<axis=1>(z, z, z, z)")
    program = graph(signature, body, **sizes)
    feeds = [{"x": np.zeros(3, np.float32)}, {"x": normal(3)}]
    for step in CLEANUP:
        check(step, program, feeds)


def test_equal_sizes_are_asked_for_once() -> None:
    body = """s1 = Shape(x) b1 = Gather(s1, zero) a = Relu(x) s2 = Shape(a) b2 = Gather(s2, zero)
        n = Add(b1, b2) f = Cast<to=1>(n) y = Mul(a, f)"""
    program = graph(SIGNATURE, body, **SIZES)
    check(FoldShapes(), program, X)
    assert operators(program)["Gather"] == 1
