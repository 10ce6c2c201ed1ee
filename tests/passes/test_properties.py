"""Every pass and pipeline on random models: the verifier stays green, the results stay the same."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import HealthCheck, given, settings
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.examples import example_inputs
from miaotui.compiler.ir.printer import print_program
from miaotui.compiler.ir.provenance import sources
from miaotui.compiler.ir.verify import verify
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import Program
from miaotui.passes.base import Pass, PassContext
from miaotui.passes.pipeline import all_passes, pipeline
from support.numerics import assert_close, run_ort
from support.random_graphs import Recipe, recipes

EVERY = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=True
)
PASSES = all_passes()
FP16 = {"convert-fp16", "convert-bf16", "store-weights"}
"""Passes that change dtypes on purpose; their own tests compare within the format's bound."""


def check(program: Program, steps: Iterable[Pass], target: Target) -> None:
    """Run ``steps`` on a clone; every one must keep the IR well-formed, honest and equal in its results."""
    context = PassContext(target)
    signature = (program.inputs(), program.outputs())
    rewritten = program.clone()
    changed, before = 0, print_program(rewritten)
    for step in steps:
        result = step.run(rewritten, context)
        changed += result.changed
        after = print_program(rewritten)
        assert bool(result.changed) == (before != after), f"{step.name} reports {result.changed} changes"
        before = after
        if not result.changed:
            continue
        verify(rewritten, after=step.name)
        assert all(sources(node) for node in rewritten.main.graph.all_nodes()), f"{step.name} loses sources"
        assert [(s.name, s.dtype) for s in rewritten.outputs()] == [(s.name, s.dtype) for s in signature[1]]
        assert rewritten.inputs() == signature[0]
    if not changed:
        return
    inputs = example_inputs(program, sizes={"batch": 3})
    expected = evaluate(program.main, inputs)
    assert_close(evaluate(rewritten.main, inputs), expected)
    if target.device == "cpu":
        assert_close(run_ort(rewritten.main, inputs), expected)


def target_of(name: str) -> Target:
    """The device a pass is for: a pass that only the CUDA pipeline has runs for CUDA."""
    cpu = {step.name for step in pipeline(CompileOptions())}
    return Target("cpu" if name in cpu else "cuda")


@pytest.mark.parametrize("name", sorted(PASSES.keys() - FP16))
def test_every_pass_keeps_a_random_model(name: str) -> None:
    pytest.importorskip("onnxruntime")
    target = target_of(name)

    @EVERY
    @given(recipes())
    def keeps(recipe: Recipe) -> None:
        check(recipe.program(), [PASSES[name]], target)

    keeps()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("level", [1, 2])
def test_every_pipeline_keeps_a_random_model(device: str, level: int) -> None:
    pytest.importorskip("onnxruntime")
    options = CompileOptions(target=Target.parse(device), opt=level)

    @EVERY
    @given(recipes())
    def keeps(recipe: Recipe) -> None:
        check(recipe.program(), pipeline(options), options.target)

    keeps()


@pytest.mark.parametrize("name", sorted(PASSES.keys() - FP16))
def test_every_pass_settles(name: str) -> None:
    """A second run finds nothing, or a bounded number of times something smaller."""

    @EVERY
    @given(recipes())
    def settles(recipe: Recipe) -> None:
        program = recipe.program()
        counts = [PASSES[name].run(program, PassContext(target_of(name))).changed for _ in range(4)]
        assert counts[-1] == 0, counts

    settles()
