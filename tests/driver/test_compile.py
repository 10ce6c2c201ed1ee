"""Compile as a whole: proved, timed, repaired; nothing half-written."""

from __future__ import annotations

from pathlib import Path

import miaotui
import numpy as np
import onnxruntime as ort
import pytest
from miaotui.compiler.artifact import check
from miaotui.compiler.options import CompileOptions, InputSpec, Target
from miaotui.compiler.reference import Arrays
from miaotui.driver.compilation import compile_model
from miaotui.frontends import load as loading
from miaotui.frontends.base import Import
from miaotui.passes.pipeline import pipeline
from support.bad_passes import BreakRelu, SlowRelu

QUICK = CompileOptions(timing=0)


def test_result_equals_onnxruntime_on_the_original_file(classifier: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(5, 32)).astype(np.float32)
    expected = ort.InferenceSession(str(classifier)).run(None, {"x": x})[0]
    with miaotui.compile(classifier, output=tmp_path / "out.miaotui", timing=0) as executable:
        np.testing.assert_allclose(executable.run({"x": x})["y"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(executable(x)["y"], executable.run({"x": x})["y"])
        assert executable.verify().ok


def test_report_and_certificate_say_what_was_proved_and_timed(classifier: Path, tmp_path: Path) -> None:
    with miaotui.compile(classifier, output=tmp_path / "out.miaotui", timing=1) as executable:
        report = executable.report
        certificate = executable.manifest.certificate
    assert [stage["name"] for stage in report["stages"]] == [
        "import", "reference", "transform", "build", "verify", "time",
    ]  # fmt: skip
    assert report["error"]["ok"] and 0 <= report["error"]["scaled"] <= report["error"]["tolerance"] == 1e-4
    assert report["latency"]["optimized"]["p50"] > 0 and report["latency"]["source"]["p50"] > 0
    assert certificate is not None and certificate.ok and certificate.reference.startswith("onnxruntime")


def test_temporary_folder_goes_with_the_executable(classifier: Path) -> None:
    executable = miaotui.compile(classifier, timing=0)
    folder = executable.folder
    assert folder.is_dir()
    executable.close()
    assert not folder.exists()


def test_wrong_pass_is_bisected_reverted_and_named(classifier: Path, tmp_path: Path) -> None:
    passes = [*pipeline(QUICK), BreakRelu()]
    with compile_model(classifier, QUICK, output=tmp_path / "out.miaotui", passes=passes) as executable:
        reverted = {p["name"]: p["reverted"] for p in executable.report["passes"] if p["reverted"]}
        assert list(reverted) == ["break-relu"]
        assert "wrong result" in reverted["break-relu"] and "(Abs; test /head/Relu" in reverted["break-relu"]
        assert executable.verify().ok
        assert "Abs" not in executable.report["ops"]["after"]


def test_slow_pass_is_reverted_and_named(classifier: Path, tmp_path: Path) -> None:
    options = CompileOptions(timing=20, threads=1)
    passes = [*pipeline(options), SlowRelu()]
    with compile_model(classifier, options, output=tmp_path / "out.miaotui", passes=passes) as executable:
        reverted = {p["name"]: p["reverted"] for p in executable.report["passes"] if p["reverted"]}
        assert "costs time" in reverted["slow-relu"]
        assert executable.report["sizes"]["weights"] < 1 << 18, "the detour's weights are still there"
        assert executable.verify().ok
    check(tmp_path / "out.miaotui")


def test_wrong_import_raises_and_leaves_the_older_folder(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out.miaotui"
    miaotui.compile(classifier, output=folder, timing=0).close()
    before = check(folder)

    original = loading.load

    def lying(source: object, options: CompileOptions, inputs: object = None) -> Import:
        imported = original(source, options, inputs)
        honest = imported.reference.run
        imported.reference.run = lambda x: {k: v + 1 for k, v in honest(x).items()}  # type: ignore[method-assign]
        return imported

    monkeypatch.setattr("miaotui.driver.compilation.load", lying)
    with pytest.raises(miaotui.VerificationError, match="without any optional pass") as caught:
        miaotui.compile(classifier, output=folder, timing=0)
    assert caught.value.exit_code == 1
    assert check(folder) == before
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_budget_decides_what_error_is_allowed(classifier: Path, tmp_path: Path) -> None:
    options = CompileOptions(timing=0, budget=10.0)
    passes = [*pipeline(options), BreakRelu()]
    with compile_model(classifier, options, output=tmp_path / "out.miaotui", passes=passes) as executable:
        assert executable.report["ops"]["after"]["Abs"] == 1
        assert executable.manifest.certificate is not None
        assert 1e-4 < executable.manifest.certificate.error <= 10.0


def test_dynamic_programs_are_proved_at_two_sizes(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    original = loading.load

    def watched(source: object, options: CompileOptions, inputs: object = None) -> Import:
        imported = original(source, options, inputs)
        honest = imported.reference.run

        def run(arrays: Arrays) -> Arrays:
            seen.append(arrays["x"].shape)
            return honest(arrays)

        imported.reference.run = run  # type: ignore[method-assign,assignment]
        return imported

    monkeypatch.setattr("miaotui.driver.compilation.load", watched)
    miaotui.compile(classifier, timing=0).close()
    assert len({shape[0] for shape in seen}) == 2


def test_fixed_input_shape_is_kept(classifier: Path) -> None:
    options = CompileOptions(timing=0, inputs=(InputSpec("x", (3, 32)),))
    with compile_model(classifier, options) as executable:
        assert executable.inputs[0].shape == (3, 32)
        with pytest.raises(miaotui.InputError):
            executable.run({"x": np.zeros((4, 32), np.float32)})


def test_cuda_executable_is_built_without_a_gpu(classifier: Path, tmp_path: Path) -> None:
    options = CompileOptions(target=Target.parse("cuda:sm_90"), precision="fp16")
    with compile_model(classifier, options, output=tmp_path / "gpu.miaotui") as executable:
        assert executable.manifest.variants["cuda-ort"].target == "cuda:sm_90"
        assert executable.manifest.certificate is None
        assert any("not proved or timed here" in note for note in executable.report["notes"])
        with pytest.raises(miaotui.ToolError, match="CUDA"):
            executable.run({"x": np.zeros((1, 32), np.float32)})


def test_numerics_names_the_error_after_every_pass(classifier: Path) -> None:
    options = CompileOptions(timing=0, budget=10.0, numerics=True)
    with compile_model(classifier, options, passes=[*pipeline(options), BreakRelu()]) as executable:
        notes = [note for note in executable.report["notes"] if note.startswith("numerics")]
    errors = {note.split()[-1]: float(note.split()[3]) for note in notes}
    assert errors.pop("break-relu") > 1e-2
    assert all(error < 1e-5 for error in errors.values())
