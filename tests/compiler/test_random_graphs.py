"""Random models verify, infer and evaluate as ONNX Runtime does."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.examples import example_inputs
from miaotui.compiler.ir.printer import print_program
from miaotui.compiler.ir.shapes import infer_shapes
from miaotui.compiler.ir.verify import problems
from support.numerics import assert_close, run_ort
from support.random_graphs import Recipe, recipes

FAST = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=True
)


@FAST
@given(recipes())
def test_random_models_are_well_formed(recipe: Recipe) -> None:
    program = recipe.program()
    assert problems(program.main) == [], print_program(program)
    assert all(v.dtype is not None for n in program.main.graph.all_nodes() for v in n.outputs)
    before = print_program(program)
    infer_shapes(program)
    assert print_program(program) == before


@FAST
@given(recipes())
def test_reference_semantics_equal_onnxruntime(recipe: Recipe) -> None:
    pytest.importorskip("onnxruntime")
    program = recipe.program()
    for batch in (1, 3):
        inputs = example_inputs(program, sizes={"batch": batch})
        assert_close(evaluate(program.main, inputs), run_ort(program.main, inputs))


@FAST
@given(recipes())
def test_inferred_shapes_are_those_that_run(recipe: Recipe) -> None:
    program = recipe.program()
    inputs = example_inputs(program, sizes={"batch": 3})
    values = [v for node in program.main.graph for v in node.outputs if v.name]
    results = evaluate(program.main, inputs, taps=[str(v.name) for v in values])
    for value in values:
        array = results[str(value.name)]
        assert value.dtype is not None and value.dtype.numpy() == array.dtype
        assert value.shape is not None and len(value.shape) == array.ndim
        for dim, size in zip(value.shape, array.shape, strict=True):
            assert size == (3 if dim == "batch" else dim) or not (isinstance(dim, int) or dim == "batch")
