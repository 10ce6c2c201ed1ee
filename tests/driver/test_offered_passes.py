"""Passes that are off unless timing shows that they gain: channels last on CUDA, tried without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.onnxruntime.settings import NHWC
from miaotui.compiler.draft import Draft
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import Program
from miaotui.driver import never_slower
from miaotui.driver.context import context_of
from miaotui.driver.decide import Judge, Result
from miaotui.driver.lower import Recipe
from miaotui.driver.never_slower import GAIN, Wider
from miaotui.driver.progress import Journal, Silent
from miaotui.driver.proof import Case, Evidence
from miaotui.driver.workbench import Workbench
from miaotui.passes.pipeline import offered, pipeline
from miaotui.runtime.onnxruntime import OnnxRuntimeModel, _providers
from miaotui.runtime.timing import Speedup, Verdict
from support.rewriting import run_pass

HALF = CompileOptions(target=Target("cuda"), precision="fp16", verify=True)


def convolutions(kind: ir.DataType = ir.DataType.FLOAT) -> Program:
    b, random = Builder(), np.random.default_rng(0)
    x = b.input("x", ("batch", 3, 8, 8), kind)
    for name, inputs in (("first", 3), ("second", 4)):
        w = b.weight(name, random.standard_normal((4, inputs, 3, 3)).astype(kind.numpy()))
        x = b.op("Relu", b.op("Conv", x, w, pads=[1, 1, 1, 1]))
        x.shape, x.type = ir.Shape(["batch", 4, 8, 8]), ir.TensorType(kind)
    b.output(x, "y")
    return Program({"main": b.model()})


@contextmanager
def tried(
    path: Path,
    options: CompileOptions,
    gains: list[Speedup],
    monkeypatch: pytest.MonkeyPatch,
    steps: Any = None,
) -> Iterator[tuple[Wider, list[str]]]:
    """What a judge adds to a small CNN if trials come out as ``gains``, and the journal's notes."""
    monkeypatch.setattr(never_slower, "trial", lambda *given, **named: gains.pop(0))
    program = convolutions()
    recipe = Recipe(program, pipeline(options) if steps is None else steps, context_of(options))
    journal = Journal(Silent())
    with Draft(path / "made") as draft:
        bench = Workbench(draft, "ort", options.target)
        lowered = recipe.lower()
        start = Result(lowered, bench.optimized(lowered, "cuda-ort"))
        case = Case({"x": np.zeros((1, 3, 8, 8), np.float32)}, {})
        yield Judge(bench, recipe, Evidence("none", (case,)), options, journal).widened(start), journal.notes


def speedup(low: float, high: float, verdict: Verdict) -> Speedup:
    return Speedup((low + high) / 2, low, high, verdict)


def test_what_gains_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gains = [speedup(1.3, 1.5, "faster")]
    with tried(tmp_path, HALF, gains, monkeypatch) as (found, notes):
        assert not gains
        assert found.built.variant.settings.items() >= NHWC.items()
        assert "prefer-nhwc" in found.lowered.fired()
        assert found.recipe.lower().fired() == found.lowered.fired()
        assert notes == ["prefer-nhwc taken: 1.400× as fast with it"]


@pytest.mark.parametrize(
    "gain",
    [speedup(0.8, 0.9, "slower"), speedup(0.9, 1.1, "equal"), speedup(1.005, GAIN, "faster")],
    ids=str,
)
def test_what_does_not_gain_beyond_the_noise_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: Speedup
) -> None:
    with tried(tmp_path, HALF, [gain], monkeypatch) as (found, notes):
        assert not set(NHWC) & set(found.built.variant.settings)
        assert "prefer-nhwc" not in {step.name for step in found.recipe.pipeline}
        assert [trial.gain for trial in found.trials] == [gain]
        assert notes[0].startswith("prefer-nhwc left out:")


@pytest.mark.parametrize(
    "options",
    [
        CompileOptions(target=Target("cuda"), precision="fp16", enable=("prefer-nhwc",)),
        CompileOptions(target=Target("cuda"), precision="fp16", disable=("prefer-nhwc",)),
        CompileOptions(target=Target("cuda")),
        CompileOptions(target=Target("cuda"), precision="fp16", opt=1),
        CompileOptions(),
    ],
    ids=lambda options: (
        f"{options.target} {options.precision} {options.enable}{options.disable}{options.opt}"
    ),
)
def test_nothing_is_tried_that_the_user_has_decided_on_or_that_does_not_fire(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: CompileOptions
) -> None:
    with tried(tmp_path, options, [], monkeypatch) as (found, _):
        asked = "prefer-nhwc" in options.enable
        assert not found.trials and (set(NHWC) <= set(found.built.variant.settings)) == asked


def test_a_pipeline_of_the_callers_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = pipeline(HALF)[1:]
    with tried(tmp_path, HALF, [], monkeypatch, own) as (found, _):
        assert not found.trials and found.recipe.pipeline == own


def test_only_images_in_halves_are_marked() -> None:
    (step,) = offered(HALF)
    assert run_pass(step, convolutions(ir.DataType.FLOAT16)).changed == 1
    assert run_pass(step, convolutions()).changed == 0
    assert offered(CompileOptions(target=Target("cuda"), backend="tvm")) == ()


def test_the_provider_is_told() -> None:
    ort: Any = SimpleNamespace(get_available_providers=lambda: ["CUDAExecutionProvider"])
    signature: Any = None
    model = OnnxRuntimeModel(b"", signature, settings={"session.x": "1", **NHWC}, target=Target("cuda"))
    assert _providers(ort, model)[0] == ("CUDAExecutionProvider", {"prefer_nhwc": "1"})
