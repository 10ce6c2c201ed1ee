"""``verify --repair``: folders that were made too coarse are made again within the tolerance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import miaotui
import pytest
from miaotui import driver
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.program import Program
from miaotui.passes.base import Pass, PassContext, PassResult
from support.bad_passes import BreakRelu
from support.layers import stack


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIAOTUI_CACHE", str(tmp_path / "cache"))


def coarse(tmp_path: Path, **options: Any) -> tuple[Path, Path, float]:
    """A model, its folder in int4, and the folder's error."""
    model, folder = stack(tmp_path / "stack.onnx"), tmp_path / "out.miaotui"
    chosen = CompileOptions(precision="int4", backend="ort", timing=0, **options)
    with driver.compile(model, chosen, output=folder) as executable:
        return model, folder, executable.report["error"]["scaled"]


def test_the_costliest_errors_are_bought_off_until_the_tolerance_holds(tmp_path: Path) -> None:
    _, folder, error = coarse(tmp_path, keep_source=True)
    with driver.open(folder) as old:
        found = driver.verify(old, tolerance=error / 3)
        assert not found.ok and found.culprit is not None
        assert found.culprit.pass_name == "quantize-weights"
        mended = driver.repair(old, found, tolerance=error / 3)
    assert mended.error[0] == found.verification.error > error / 3 >= mended.error[1]
    assert mended.raised and mended.race is not None
    assert sum(each.nbytes for each in mended.raised) > 0
    with driver.open(folder) as new:
        again = driver.verify(new)
        assert again.ok and again.verification.tolerance == pytest.approx(error / 3)
        plan = new.manifest.plan["quantize-weights"]
        assert "source" in new.manifest.variants
    assert {each.weights[0] for each in mended.raised} <= plan.keys()


def test_the_source_may_be_given_where_it_was_not_kept(tmp_path: Path) -> None:
    model, folder, error = coarse(tmp_path)
    with driver.open(folder) as old:
        found = driver.verify(old, tolerance=error / 2)
        assert "--keep-source" in found.why
        with pytest.raises(miaotui.ArtifactError, match="--reference MODEL"):
            driver.repair(old, found, tolerance=error / 2)
    checked = miaotui.verify(folder, model, tolerance=error / 2, repair=True)
    assert checked.ok and checked.error <= error / 2
    with driver.open(folder) as new:
        assert "source" not in new.manifest.variants


def test_what_is_precise_enough_is_left_as_it_is(tmp_path: Path) -> None:
    _, folder, error = coarse(tmp_path)
    before = (folder / "manifest.json").read_bytes()
    assert miaotui.verify(folder, tolerance=error * 1.01, repair=True).ok
    assert (folder / "manifest.json").read_bytes() == before


def test_a_wrong_pass_is_left_out(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from miaotui.driver.compilation import compile_model
    from miaotui.passes.pipeline import pipeline

    lenient = CompileOptions(timing=0, budget=10.0)
    passes = [*pipeline(lenient), BreakRelu()]
    monkeypatch.setattr("miaotui.driver.remade.pipeline", lambda options: passes)
    folder = tmp_path / "out.miaotui"
    with compile_model(classifier, lenient, output=folder, passes=passes) as old:
        found = driver.verify(old, tolerance=1e-4)
        mended = driver.repair(old, found, tolerance=1e-4)
    assert list(mended.left_out) == ["break-relu"] and mended.error[1] <= 1e-4


@dataclass(frozen=True)
class Halve(Pass):
    """Stands for narrowing: what a Relu gives is off unless the node is kept."""

    name: ClassVar[str] = "convert-fp16"
    optional: ClassVar[bool] = False
    keep: tuple[str, ...] = ()
    keep_nodes: tuple[str, ...] = ()

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Abs in place of every Relu that is not kept."""
        found = [n for n in program.main.graph if n.op_type == "Relu" and n.name not in self.keep_nodes]
        for node in () if "Relu" in self.keep else found:
            node.op_type = "Abs"
        return PassResult(len(found))


def test_nodes_where_narrowing_errs_are_kept_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from miaotui.driver import mending, remade, widening
    from miaotui.driver.compilation import compile_model
    from miaotui.passes.base import parse_pass_spec
    from miaotui.passes.pipeline import pipeline

    model, folder = stack(tmp_path / "stack.onnx", depth=2), tmp_path / "half.miaotui"
    lenient = CompileOptions(timing=0, budget=10.0, backend="ort")

    def passes(options: CompileOptions) -> list[Pass]:
        specs = [text for name, text in map(parse_pass_spec, options.enable) if name == Halve.name]
        return [*pipeline(lenient), Halve().with_options(specs[-1] if specs else "")]

    for module in (remade, widening, mending):
        monkeypatch.setattr(module, "pipeline", passes)
    with compile_model(model, lenient, output=folder, passes=passes(lenient)) as old:
        found = driver.verify(old, tolerance=1e-4)
        assert found.culprit is not None and found.culprit.pass_name == "convert-fp16"
        mended = driver.repair(old, found, tolerance=1e-4)
    assert len(mended.kept) == 2 and mended.error[1] <= 1e-4
    with driver.open(folder) as new:
        assert new.manifest.options["enable"] == [f"convert-fp16{{keep_nodes={'+'.join(mended.kept)}}}"] or (
            "Relu" in mended.kept
        )


def test_the_verb_says_what_it_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from miaotui.cli.verify import show_repair

    _, folder, error = coarse(tmp_path, keep_source=True)
    with driver.open(folder) as old:
        mended = driver.repair(old, driver.verify(old, tolerance=error / 3), tolerance=error / 3)
    show_repair(mended)
    text = capsys.readouterr().out
    assert f"budget {error / 3:.2g}" in text and " ms, " in text and mended.raised[0].weights[0] in text
    plain = mended.to_json()
    assert plain["error"][1] <= plain["budget"] and len(plain["seconds"]) == 2
