"""Parts of the native code generator: views, sizes, memory, constants, names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from miaotui.compiler.codegen.native.constants import Constants, array_of, key_of
from miaotui.compiler.codegen.native.emit.base import View, bare, divided, times
from miaotui.compiler.codegen.native.functions import Functions
from miaotui.compiler.codegen.native.memory import Lifetime, live_steps, plan, waits
from miaotui.compiler.codegen.native.program import wrapped
from miaotui.compiler.codegen.native.sizes import Sizes, c_name
from miaotui.compiler.codegen.native.source import source_of
from miaotui.compiler.codegen.native.views import contiguous, cut, expanded, reshaped, rows_of, transposed
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.provenance import Source, set_sources

SIZES = {"batch": 2, "tokens": 3, "sequence": 5}
NAMES = {2: "batch", 3: "tokens", 5: "sequence"}


def number(size: int | str) -> int:
    """A C expression's value at ``SIZES``."""
    text = str(size).replace(" / ", " // ")
    return int(eval(text, {"min64": min, "max64": max, **SIZES}))


def elements(view: View) -> np.ndarray[Any, Any]:
    """Where the elements of a view lie in its memory."""
    places = np.zeros((), np.int64)
    for size, stride in zip(view.shape, view.strides, strict=True):
        places = places[..., None] + np.arange(number(size)) * number(stride)
    return places + (number(view.pointer.replace("x", "0")) if view.pointer != "x" else 0)


@dataclass
class Seen:
    """The same memory seen as a View and by numpy."""

    view: View
    array: np.ndarray[Any, Any]

    def agrees(self) -> bool:
        return np.array_equal(elements(self.view), self.array)


@st.composite
def seen(draw: st.DrawFn) -> Seen:
    numbers = draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 6]), min_size=1, max_size=4))
    named = draw(st.booleans())
    shape = [NAMES.get(n, n) if named else n for n in numbers]
    at = Seen(contiguous("x", "float", shape), np.arange(math.prod(numbers)).reshape(numbers))
    for _ in range(draw(st.integers(0, 3))):
        rank = at.array.ndim
        match draw(st.sampled_from(["turn", "cut", "step", "grow"])):
            case "turn":
                order = draw(st.permutations(range(rank)))
                at = Seen(transposed(at.view, order), at.array.transpose(order))
            case "cut" | "step" as kind:
                axis = draw(st.integers(0, rank - 1))
                step = 2 if kind == "step" else 1
                begin = draw(st.integers(0, at.array.shape[axis] - 1))
                taken = np.moveaxis(np.moveaxis(at.array, axis, 0)[begin::step], 0, axis)
                at = Seen(cut(at.view, axis, begin, taken.shape[axis], step), taken)
            case "grow":
                wide = (2, *at.array.shape)
                at = Seen(expanded(at.view, (2, *at.view.shape)), np.broadcast_to(at.array, wide))
    return at


def factorings(count: int) -> st.SearchStrategy[list[int]]:
    """Shapes of so many elements."""

    @st.composite
    def drawn(draw: st.DrawFn) -> list[int]:
        left, shape = count, []
        while left > 1:
            part = draw(st.sampled_from([d for d in range(2, left + 1) if left % d == 0]))
            shape.append(part)
            left //= part
        return draw(st.permutations([*shape, *[1] * draw(st.integers(0, 2))]))

    return drawn()


@given(seen())
def test_views_say_where_elements_lie(at: Seen) -> None:
    assert at.agrees()
    assert not at.view.is_contiguous or np.array_equal(
        at.array.ravel() - at.array.flat[0], np.arange(at.array.size)
    )


@given(st.data())
def test_reshapes_without_a_copy_keep_every_element(data: st.DataObject) -> None:
    at = data.draw(seen())
    shape = data.draw(factorings(at.array.size))
    view = reshaped(at.view, shape)
    if view is not None:
        assert np.array_equal(elements(view), at.array.reshape(shape))


@given(seen())
def test_rows_lie_where_they_are_said_to(at: Seen) -> None:
    found = rows_of(at.view)
    if found is not None:
        count, stride = map(number, found)
        rows = at.array.reshape(-1, at.array.shape[-1])
        assert len(rows) == count
        assert np.array_equal(rows[:, 0], rows[0, 0] + np.arange(count) * stride)


def test_heads_of_joined_projections_need_no_copy() -> None:
    joined = contiguous("x", "float", ("batch", "tokens", 960))
    heads = reshaped(cut(joined, 2, 576, 192), ("batch", "tokens", 3, 64))
    assert heads is not None
    turned = transposed(heads, (0, 2, 1, 3))
    assert turned == View("(x + 576)", "float", ("batch", 3, "tokens", 64), ("(960 * tokens)", 64, 960, 1))


@pytest.mark.parametrize(
    ("dim", "sequence", "expected"),
    [
        ("sequence", 7, 7),
        ("Min(16, sequence)", 20, 16),
        ("2*sequence + 1", 4, 9),
        ("floor(sequence/2 + 1/2)", 7, 4),
        ("Max(0, sequence - 3)", 2, 0),
        ("Mod(sequence, 4)", 6, None),
        ("unk__3", 1, None),
        ("other", 1, None),
    ],
)
def test_spells_sizes_in_c(dim: str, sequence: int, expected: int | None) -> None:
    size = Sizes(("sequence",), ("sequence",)).size(dim)
    if expected is None:
        assert size is None
    else:
        assert (
            eval(str(size).replace(" / ", " // "), {"min64": min, "max64": max, "sequence": sequence})
            == expected
        )


def test_products_have_one_form() -> None:
    assert (
        times("tokens", times(4, "batch")) == times(times("batch", "tokens"), 2, 2) == "(4 * batch * tokens)"
    )
    assert times("(a + b)", "c", 0) == 0
    assert divided("(4 * batch * tokens)", times(2, "batch")) == "(2 * tokens)"
    assert divided("(4 * batch)", "tokens") is None
    assert divided(6, 4) is None
    assert bare("(a + b) * (c + d)") == "(a + b) * (c + d)"


def test_names_hide_nothing_of_c() -> None:
    assert c_name("float") == "float_size"
    assert c_name("batch", ["batch"]) == "batch_2"
    assert c_name("0.weird name!") == "at_0_weird_name"


SIZE = st.one_of(
    st.integers(1, 100), st.builds(lambda n, s: times(n, s), st.integers(1, 9), st.sampled_from(list(SIZES)))
)


@st.composite
def lifetimes(draw: st.DrawFn) -> dict[int, Lifetime]:
    made: dict[int, Lifetime] = {}
    for name in range(draw(st.integers(1, 12))):
        first = draw(st.integers(0, 10))
        last = first + draw(st.integers(0, 5))
        over = draw(st.sampled_from([None, *made])) if made else None
        made[name] = Lifetime(draw(SIZE), draw(st.sampled_from(["float", "int64_t"])), first, last, over)
    return made


@given(lifetimes())
@example({0: Lifetime(1, "float", 0, 1), **dict.fromkeys((1, 2), Lifetime(1, "float", 1, 1, over=0))})
def test_values_alive_together_never_share_a_buffer(lives: dict[int, Lifetime]) -> None:
    placed, slots = plan(lives)
    assert set(placed) == set(lives)
    for a in lives:
        slot = slots[placed[a]]
        assert slot.ctype == lives[a].ctype
        assert max(map(number, slot.sizes)) >= number(lives[a].size)
        for b in lives:
            if a < b and placed[a] == placed[b]:
                one, two = lives[a], lives[b]
                early, late = (a, b) if (one.first, a) < (two.first, b) else (b, a)
                gap = lives[early].last < lives[late].first
                handed = lives[late].over == early and lives[early].last == lives[late].first
                assert gap or handed


def test_a_residual_is_added_in_place() -> None:
    lives = {0: Lifetime("batch", "float", 0, 3), 1: Lifetime("batch", "float", 3, 5, over=0)}
    assert plan(lives)[0] == {0: 0, 1: 0}
    read_later = {**lives, 0: Lifetime("batch", "float", 0, 4)}
    assert plan(read_later)[0] == {0: 0, 1: 1}


def test_steps_without_effect_are_dropped() -> None:
    reads = [frozenset({0}), frozenset({0, 1}), frozenset({2}), frozenset({1, 9})]
    writes = [frozenset({0}), frozenset({1}), frozenset({2}), frozenset({9})]
    assert live_steps(reads, writes, frozenset({9})) == [True, True, False, True]


def test_workers_meet_where_a_step_needs_another() -> None:
    none: frozenset[str] = frozenset()
    a, b, c = (frozenset({name}) for name in "abc")
    plain = [False] * 4
    assert waits([a, b, c, a | b], [a, b, none, none], plain) == [False, False, False, True]
    assert waits([a, none, b], [none, a, none], plain[:3]) == [False, True, False]  # read, then written over
    assert waits([a, a], [a, a], plain[:2]) == [False, True]
    assert waits([a, b, c], [a, b, c], [True, True, False]) == [False, True, False]  # one scratch memory


def test_constants_are_what_follows_from_initializers_alone() -> None:
    b = Builder()
    x = b.input("x", ("batch", 4))
    half = b.weight("w", np.ones((4, 3), np.float16))
    turned = b.op("Transpose", b.op("Cast", half, to=1), perm=[1, 0])
    y = b.op("Add", x, b.op("ReduceSum", turned, b.weight("axes", np.array([0])), keepdims=0))
    b.output(y, "y")
    b.model()
    constants = Constants()
    assert constants.holds(turned)
    assert not constants.holds(y)
    assert not constants.holds(x)
    assert array_of(turned).tolist() == np.ones((3, 4)).tolist()
    assert key_of(turned) != key_of(half)
    again = b.op("Transpose", b.op("Cast", half, to=1), perm=[1, 0])
    assert key_of(turned) == key_of(again)


def test_functions_are_written_once() -> None:
    functions = Functions()
    assert functions.add("linear", "void NAME(void);") == "linear"
    assert functions.add("linear", "void NAME(void);") == "linear"
    assert functions.add("linear", "int NAME(void);") == "linear_2"
    assert functions.texts["linear_2"] == "int linear_2(void);"


def test_comments_name_source_layers_and_can_not_end_early() -> None:
    node = ir.node("Linear", [])
    set_sources(node, [Source("torch", f"model.layers.3.{part}") for part in ("attn", "attn.q", "attn.k")])
    assert source_of(node) == "model.layers.3.attn: q, k (Linear)"
    set_sources(node, [Source("torch", "a */ b /* c\nd\\")])
    assert source_of(node) == "a * / b / * c d/ (Linear)"
    set_sources(node, [Source("torch", f"model.{i}") for i in range(9)])
    assert source_of(node) == "model: 0, 1, 2, 3, 4 and 4 more (Linear)"


def test_long_lines_are_broken_before_fields() -> None:
    line = "    call(w, &(args){.first = " + "a" * 55 + ", .second = {1, 2, 3}, .third = 4});"
    broken = wrapped(line)
    assert len(broken) == 2
    assert broken[1].lstrip().startswith(".third")
    assert " ".join(part.strip() for part in broken) == line.strip()
