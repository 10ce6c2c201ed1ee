"""A small Llama through smoothing and GPTQ: every place is found, the function is kept."""

from __future__ import annotations

import numpy as np
import pytest
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.driver.calibration import measured_moments
from miaotui.passes.base import Pass, PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.moments import LayeredMoments
from miaotui.passes.observers import run_pipeline
from miaotui.passes.precision.smoothing import SmoothActivations
from miaotui.passes.precision.weights import QuantizeWeights
from miaotui.passes.raising import RAISING
from support.language_models import DECODERS, build, imported
from support.numerics import scaled_error
from support.rewriting import Arrays, ort_run

pytest.importorskip("transformers")
RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def llama() -> Program:
    """Raised; two query heads share one of keys and values."""
    program = imported(build(*DECODERS["llama"]))
    run_pipeline(program, [*CLEANUP, *RAISING, *CLEANUP], PassContext())
    return program


@pytest.fixture(scope="module")
def context(llama: Program) -> PassContext:
    return PassContext(moments=measured_moments(llama, [feed() for _ in range(8)]))


def feed() -> Arrays:
    return {"input_ids": RNG.integers(3, 300, (1, 48))}


def after(program: Program, steps: list[Pass], context: PassContext) -> tuple[Program, list[str]]:
    copy = program.clone()
    results = run_pipeline(copy, steps, context)
    return copy, [str(note) for _, result in results for note in result.hits]


def test_smoothing_finds_norms_gates_and_attention(llama: Program, context: PassContext) -> None:
    program, notes = after(llama, [SmoothActivations(alpha="0.5")], context)
    assert sum("through a gate" in note for note in notes) == 2
    assert sum("through attention" in note for note in notes) == 2
    assert len(notes) == 9  # two norms in each of two layers, and the last one
    case = feed()
    assert scaled_error(ort_run(program, case)["logits"], ort_run(llama, case)["logits"]) < 2e-5


def test_moments_handed_on_are_those_of_the_smoothed_program(llama: Program, context: PassContext) -> None:
    program = llama.clone()
    result = SmoothActivations(alpha="0.5").run(program, context)
    assert context.moments is not None
    told = LayeredMoments(result.moments, context.moments)
    cases = [feed() for _ in range(3)]
    before, now = measured_moments(llama, cases), measured_moments(program, cases)
    for name in result.moments:
        scale = np.sqrt(np.diagonal(told[name].matrix) / np.diagonal(context.moments[name].matrix))
        wanted = before[name].matrix * np.outer(scale, scale)
        np.testing.assert_allclose(now[name].matrix, wanted, rtol=2e-3, atol=1e-4 * np.abs(wanted).max())


def test_gptq_loses_less_than_rounding(llama: Program, context: PassContext) -> None:
    case = feed()
    wanted = evaluate(llama.main, case)["logits"]
    errors = []
    for steps in (
        [QuantizeWeights(bits=4, method="rtn", least=1)],
        [QuantizeWeights(bits=4, least=1)],
        [SmoothActivations(bits=4), QuantizeWeights(bits=4, least=1)],
    ):
        program, notes = after(llama, [*steps], context)
        assert sum("4 bits" in note for note in notes) == 14
        errors.append(float(np.square(evaluate(program.main, case)["logits"] - wanted).mean()))
    assert max(errors[1:]) < 0.85 * errors[0], errors
