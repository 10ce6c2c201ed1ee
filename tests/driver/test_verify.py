"""The verb verify: golden data, a reference, and bisection on excess."""

from __future__ import annotations

from pathlib import Path

import miaotui
import pytest
from miaotui import driver
from miaotui.compiler.options import CompileOptions
from miaotui.driver.compilation import compile_model
from miaotui.passes.pipeline import pipeline
from support.bad_passes import BreakRelu

LENIENT = CompileOptions(timing=0, budget=10.0)


def test_excess_is_bisected_to_pass_and_node(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = [*pipeline(LENIENT), BreakRelu()]
    monkeypatch.setattr("miaotui.driver.remade.pipeline", lambda options: passes)
    with compile_model(classifier, LENIENT, output=tmp_path / "out.miaotui", passes=passes) as executable:
        assert driver.verify(executable).ok
        found = driver.verify(executable, tolerance=1e-4)
    assert not found.ok
    assert found.culprit is not None
    assert (found.culprit.pass_name, found.culprit.op_type) == ("break-relu", "Abs")
    assert any("head" in source for source in found.culprit.sources)


def test_reference_may_be_the_model_file(classifier: Path, tmp_path: Path) -> None:
    with miaotui.compile(classifier, output=tmp_path / "out.miaotui", timing=0) as executable:
        found = driver.verify(executable, reference=classifier)
    assert found.ok and found.verification.reference.startswith("onnxruntime")
    assert found.verification.layers, "no layer was compared"


def test_reference_with_other_inputs_is_refused(classifier: Path, tmp_path: Path) -> None:
    import onnx_ir as ir
    from miaotui.compiler.ir.builder import Builder

    b = Builder()
    b.output(b.op("Relu", b.input("other", (2, 2))), "y")
    ir.save(b.model(), tmp_path / "other.onnx")
    with (
        miaotui.compile(classifier, timing=0) as executable,
        pytest.raises(miaotui.InputError, match="takes other, the executable x"),
    ):
        driver.verify(executable, reference=tmp_path / "other.onnx")


def test_without_the_source_variant_it_says_why_it_cannot_bisect(classifier: Path, tmp_path: Path) -> None:
    options = CompileOptions(timing=0, budget=10.0, keep_source=False)
    passes = [*pipeline(options), BreakRelu()]
    with compile_model(classifier, options, output=tmp_path / "out.miaotui", passes=passes) as executable:
        found = driver.verify(executable, tolerance=1e-4)
    assert not found.ok and found.culprit is None and "--keep-source" in found.why


def test_no_pass_is_blamed_when_the_pipeline_is_right_now(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = [*pipeline(LENIENT), BreakRelu()]
    with compile_model(classifier, LENIENT, output=tmp_path / "out.miaotui", passes=passes) as executable:
        found = driver.verify(executable, tolerance=1e-4)
    assert not found.ok and found.culprit is None and "compile the model again" in found.why
