"""Segments of a cut program, run one after the other, are the whole program."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from miaotui.compiler.ir.builder import BOOL, Builder
from miaotui.compiler.ir.cut import Segment, cut, reads
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.examples import example_inputs
from miaotui.compiler.ir.verify import problems
from miaotui.compiler.program import Program
from support.random_graphs import Recipe, recipes

FAST = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=True
)


def in_turn(segments: list[Segment[Any]], inputs: dict[str, Any]) -> dict[str, Any]:
    """All values that the segments take and give."""
    known = dict(inputs)
    for segment in segments:
        given = {spec.name: known[spec.name] for spec in segment.program.inputs()}
        known.update(evaluate(segment.program.main, given))
    return known


def assert_equals_whole(program: Program, segments: list[Segment[Any]], inputs: dict[str, Any]) -> None:
    known = in_turn(segments, inputs)
    for name, array in evaluate(program.main, inputs).items():
        assert known[name].dtype == array.dtype and known[name].tobytes() == array.tobytes(), name


def owners(program: Program, seed: int, count: int) -> dict[str, int]:
    choice = random.Random(seed)
    return {str(node.name): choice.randrange(count) for node in program.main.graph}


@FAST
@given(recipes(), st.integers(0, 2**16), st.integers(1, 4))
def test_segments_in_turn_equal_the_whole_bit_for_bit(recipe: Recipe, seed: int, count: int) -> None:
    program = recipe.program()
    owned = owners(program, seed, count)
    segments = cut(program, lambda node: owned[str(node.name)])
    assert_equals_whole(program, segments, example_inputs(program, sizes={"batch": 3}))


@FAST
@given(recipes(), st.integers(0, 2**16))
def test_segments_keep_nodes_names_types_and_sources(recipe: Recipe, seed: int) -> None:
    program = recipe.program()
    owned = owners(program, seed, 2)
    segments = cut(program, lambda node: owned[str(node.name)])
    whole = {str(node.name): node for node in program.main.graph}
    seen: list[str] = []
    for segment in segments:
        assert problems(segment.program.main) == []
        for node in segment.program.main.graph:
            original = whole[str(node.name)]
            assert owned[str(node.name)] == segment.owner
            assert node.metadata_props == original.metadata_props
            for value, other in zip(node.outputs, original.outputs, strict=True):
                assert (value.name, value.type, value.shape) == (other.name, other.type, other.shape)
            for value, other in zip(node.inputs, original.inputs, strict=True):
                if value is not None and other is not None:
                    assert (value.name, value.type, value.shape) == (other.name, other.type, other.shape)
                    assert value.const_value is other.const_value
            seen.append(str(node.name))
    assert sorted(seen) == sorted(whole)
    assert all(one.owner != other.owner for one, other in pairwise(segments))


@FAST
@given(recipes(), st.integers(1, 5))
def test_stages_that_follow_each_other_are_one_segment_each(recipe: Recipe, count: int) -> None:
    program = recipe.program()
    nodes = [str(node.name) for node in program.main.graph]
    stage = {name: place * count // len(nodes) for place, name in enumerate(nodes)}
    segments = cut(program, lambda node: stage[str(node.name)])
    assert len(segments) == len(set(stage.values()))


@FAST
@given(recipes(max_steps=4), st.integers(0, 2**16))
def test_two_owners_have_as_few_segments_as_any_order_gives(recipe: Recipe, seed: int) -> None:
    program = recipe.program()
    owned = owners(program, seed, 2)
    nodes = list(program.main.graph)
    assert len(cut(program, lambda node: owned[str(node.name)])) == fewest(
        nodes, [owned[str(n.name)] for n in nodes]
    )


def fewest(nodes: list[ir.Node], owned: list[int]) -> int:
    """By breadth: the sets of nodes that can have run after so many switches, whoever begins."""
    places = {node: place for place, node in enumerate(nodes)}
    before = [{places[p] for v in reads(n) if (p := v.producer()) is not None and p in places} for n in nodes]
    frontier = {(frozenset[int](), -1)}
    switches = 0
    while True:
        switches += 1
        reached = set()
        for done, last in frontier:
            for owner in {0, 1} - {last}:
                grown = set(done)
                while more := [
                    i
                    for i in range(len(nodes))
                    if i not in grown and owned[i] == owner and before[i] <= grown
                ]:
                    grown.update(more)
                if len(grown) == len(nodes):
                    return switches
                if len(grown) > len(done):
                    reached.add((frozenset(grown), owner))
        frontier = reached


def test_a_subgraph_takes_what_it_reads_along() -> None:
    b = Builder()
    x, flag = b.input("x", ("batch", 4)), b.input("flag", (), BOOL)
    early = b.op("Relu", x, name="early")
    bodies = []
    for op_type in ("Neg", "Exp"):
        inner = ir.node(op_type, [early], name=f"inner_{op_type}")
        inner.outputs[0].name = f"inner_{op_type}"
        bodies.append(ir.Graph([], inner.outputs, nodes=[inner], name=op_type, opset_imports={"": b.opset}))
    chosen = b.op("If", flag, name="chosen", then_branch=bodies[0], else_branch=bodies[1])
    b.output(b.op("Add", chosen, early), "y")
    program = b.program()
    segments = cut(program, lambda node: node.op_type == "If")
    assert [segment.owner for segment in segments] == [False, True, False]
    assert {spec.name for spec in segments[1].program.inputs()} == {"early", "flag"}
    for value in (True, False):
        inputs = {"x": np.float32([[1, -2, 3, -4]]), "flag": np.array(value)}
        assert_equals_whole(program, segments, inputs)


def test_weights_are_shared_and_outputs_that_nothing_computes_are_kept() -> None:
    b = Builder()
    x, w = b.input("x", ("batch", 4)), b.weight("w", np.eye(4))
    b.output(b.op("MatMul", b.op("Relu", b.op("MatMul", x, w)), w), "y")
    b.graph.outputs.extend([x, w])
    program = b.program()
    segments = cut(program, lambda node: node.op_type)
    assert [segment.owner for segment in segments] == ["MatMul", "Relu", "MatMul"]
    tensors = [s.program.main.graph.initializers["w"].const_value for s in (segments[0], segments[2])]
    assert tensors[0] is tensors[1] is program.main.graph.initializers["w"].const_value
    assert [spec.name for spec in segments[2].program.outputs()] == ["y", "w"]
    assert_equals_whole(program, segments, {"x": np.float32([[1, 2, 3, 4]])})


@pytest.mark.parametrize("entry", ["main", "other"])
def test_any_entry_can_be_cut_and_the_program_stays_as_it_is(entry: str) -> None:
    b = Builder()
    b.output(b.op("Neg", b.op("Relu", b.input("x", ("batch", 2)))), "y")
    model = b.model()
    program = Program({entry: model, "main": model.clone()})
    before = [node.name for node in program.entries[entry].graph]
    assert [s.owner for s in cut(program, lambda node: node.op_type, entry)] == ["Relu", "Neg"]
    assert [node.name for node in program.entries[entry].graph] == before
    assert all(node.graph is program.entries[entry].graph for node in program.entries[entry].graph)
