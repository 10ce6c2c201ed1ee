"""Whose rows may be dealt out: those that no node mixes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.ir.shapes import infer_shapes
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.program import Program
from miaotui.driver.meshes import refuse_mesh
from miaotui.passes.partition.data import batch_problems
from support.folders import mlp


def mixing(kind: str) -> Program:
    """A program whose rows depend on each other."""
    b = Builder()
    x = b.input("x", ("batch", 8))

    def at(place: int) -> ir.Value:
        return b.op("Constant", value=ir.tensor(np.array([place])))

    def part(start: int, end: int) -> ir.Value:
        return b.op("Slice", x, at(start), at(end), at(0))

    rest = {
        "mean": lambda: b.op("Sub", x, b.op("ReduceMean", x, at(0), keepdims=1)),
        "softmax": lambda: b.op("Softmax", x, axis=0),
        "gram": lambda: b.op("MatMul", x, b.op("Transpose", x, perm=[1, 0])),
        "first": lambda: b.op("Add", x, b.op("Gather", x, at(0), axis=0)),
        "shift": lambda: b.op("Concat", part(1, 2**63 - 1), part(0, 1), axis=0),
    }[kind]()
    b.output(b.op("Relu", rest), "y")
    made = b.program()
    infer_shapes(made)
    return made


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("mean", "depend on each other at"),
        ("softmax", "(Softmax)"),
        ("gram", "(MatMul)"),
        ("first", "(Gather)"),
        ("shift", "outputs y have no dimension 'batch'"),
    ],
)
def test_rows_that_depend_on_each_other_are_not_dealt_out(kind: str, told: str) -> None:
    (problem,) = batch_problems(mixing(kind))
    assert told in problem.fact
    refuse_mesh(mixing(kind), Mesh(pp=2))


def test_a_batch_that_is_not_there_is_refused() -> None:
    b = Builder()
    b.output(b.op("Relu", b.op("Neg", b.input("x", (2, 8)))), "y")
    with pytest.raises(OptionError) as caught:
        refuse_mesh(b.program(), Mesh(dp=2, pp=3))
    told = str(caught.value)
    assert "no batch dimension" in told and "3 stages for 2 nodes" in told and "nearest: --pp 2" in told
    ids = Builder()
    x = ids.input("x", ("batch", 8))
    ids.output(ids.op("Add", x, ids.op("Cast", ids.input("n", ("rows",), INT64), to=1)), "y")
    assert "that all share" in batch_problems(ids.program())[0].fact


def test_rows_of_a_network_are_dealt_out() -> None:
    program = mlp()
    infer_shapes(program)
    assert batch_problems(program) == []
