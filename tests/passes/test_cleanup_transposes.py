"""merge-views and sink-transposes: chains of views, and layout changes around convolutions."""

from __future__ import annotations

import pytest
from miaotui.compiler.ir.printer import print_program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import MergeViews, SinkTransposes
from support.graphs import graph, normal
from support.rewriting import check, operators, reasons

X = [{"x": normal(2, 3, 8)}, {"x": normal(4, 5, 8)}]


@pytest.mark.parametrize(
    ("result", "body", "expected"),
    [
        ("[b, s, 8]", "a = Transpose<perm=[1, 0, 2]>(x) y0 = Transpose<perm=[1, 0, 2]>(a)", {}),
        ("[8, b, s]", "a = Transpose<perm=[1, 0, 2]>(x) y0 = Transpose<perm=[2, 1, 0]>(a)", {"Transpose": 1}),
        ("[b, s, 8]", "a = Reshape(x, flat) y0 = Reshape(a, back)", {"Reshape": 1}),
        ("[b, s, 8]", "a = Unsqueeze(x, axis) y0 = Squeeze(a, axis)", {}),
        ("[b, s, 8]", "a = Cast<to=11>(x) y0 = Cast<to=1>(a)", {}),
        ("[b, s, 8]", "a = Cast<to=11>(x) c = Cast<to=10>(a) y0 = Cast<to=1>(c)", {"Cast": 2}),
    ],
    ids=["cancel", "compose", "reshape", "unsqueeze", "widen", "narrow"],
)
def test_views_in_a_row_become_one(result: str, body: str, expected: dict[str, int]) -> None:
    program = graph(
        f"(float[b, s, 8] x) => (float{result} y)",
        body + " y = Relu(y0)",
        flat=[-1],
        back=[2, -1, 8],
        axis=[1],
    )
    feeds = [X[0]] if "back" in body else X
    check(MergeViews(), program, feeds)
    assert operators(program) == {"Relu": 1, **expected}


def test_a_cast_through_a_narrower_type_is_left() -> None:
    body = "a = Cast<to=7>(x) c = Cast<to=1>(a) y = Relu(c)"
    program = graph("(float[b, s, 8] x) => (float[b, s, 8] y)", body)
    before = print_program(program)
    assert not MergeViews().run(program, PassContext()).changed
    assert print_program(program) == before


def test_a_copied_dimension_that_the_inner_reshape_changed_is_not_merged() -> None:
    body = "a = Reshape(x, merged) y = Reshape(a, copied)"
    program = graph("(float[b, s, 8] x) => (float[m, 4, 2] y)", body, merged=[-1, 8], copied=[0, 4, 2])
    result = check(MergeViews(), program, X)[0]
    assert not result.changed and "copied dimension" in reasons(result)


IMAGES = [{"x": normal(2, 8, 8, 3)}, {"x": normal(1, 8, 8, 3)}]
DOWN, UP = "Transpose<perm=[0, 3, 1, 2]>", "Transpose<perm=[0, 2, 3, 1]>"


def test_channels_last_convolutions_lose_the_transposes_between_them() -> None:
    body = f"""i = {DOWN}(x) c = Conv<pads=[1, 1, 1, 1]>(i, w) o = {UP}(c) s = Add(o, bias) r = Relu(s)
        j = {DOWN}(r) d = Conv<pads=[1, 1, 1, 1]>(j, v) p = {UP}(d) t = Add(p, r) q = Sigmoid(t)
        k = {DOWN}(q) m = MaxPool<kernel_shape=[2, 2]>(k) y = {UP}(m)"""
    signature = "(float[b, 8, 8, 3] x) => (float[b, 7, 7, 4] y)"
    program = graph(signature, body, w=normal(4, 3, 3, 3), v=normal(4, 4, 3, 3), bias=normal(4))
    check(SinkTransposes(), program, IMAGES)
    assert operators(program)["Transpose"] == 2


@pytest.mark.parametrize("keep", [0, 1])
def test_a_mean_over_height_and_width_takes_the_transpose_in(keep: int) -> None:
    body = f"i = {DOWN}(x) c = Conv(i, w) o = {UP}(c) r = Relu(o) y = ReduceMean<keepdims={keep}>(r, axes)"
    result = "float[b, 1, 1, 4] y" if keep else "float[b, 4] y"
    program = graph(f"(float[b, 8, 8, 3] x) => ({result})", body, w=normal(4, 3, 3, 3), axes=[1, 2])
    check(SinkTransposes(), program, IMAGES)
    assert operators(program)["Transpose"] == (2 if keep else 1)


def test_branches_joined_by_concat_sink_together() -> None:
    body = f"""i = {DOWN}(x) c = Conv(i, w) o = {UP}(c) d = Conv(i, v) p = {UP}(d) n = Concat<axis=3>(o, p)
        k = {DOWN}(n) m = MaxPool<kernel_shape=[2, 2]>(k) y = Relu(m)"""
    signature = "(float[b, 8, 8, 3] x) => (float[b, 9, 5, 5] y)"
    program = graph(signature, body, w=normal(4, 3, 3, 3), v=normal(5, 3, 3, 3))
    check(SinkTransposes(), program, IMAGES)
    assert operators(program)["Transpose"] == 1


@pytest.mark.parametrize(
    "body",
    [
        "t = Transpose<perm=[0, 2, 1, 3]>(x) r = Relu(t) y = Transpose<perm=[0, 2, 1, 3]>(r)",
        f"i = {DOWN}(x) c = Conv(i, w) o = {UP}(c) y = Relu(o)",
    ],
    ids=["no image operators", "nothing below undoes it"],
)
def test_transposes_that_gain_nothing_stay_where_they_are(body: str) -> None:
    program = graph("(float[b, 8, 8, 3] x) => (float[b, h, k, c] y)", body, w=normal(4, 3, 3, 3))
    before = print_program(program)
    assert not SinkTransposes().run(program, PassContext()).changed
    assert print_program(program) == before
