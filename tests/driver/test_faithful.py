"""What zeros and factors cost is the budget's matter; the rest of a pruned program is as exact as without."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import miaotui
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.cli.app import app
from miaotui.compiler.ir.rewrite import Rewriter
from miaotui.compiler.options import CompileOptions
from miaotui.driver.compilation import compile_model
from miaotui.passes.base import Pass, PassContext, RewritePass
from miaotui.passes.pipeline import pipeline
from miaotui.runtime.compare import TOLERANCES
from support.layers import stack
from typer.testing import CliRunner

SPARSE: dict[str, Any] = {
    "sparsity": "0.05",
    "backend": "ort",
    "timing": 0.0,
    "threads": 1,
    "enable": ("prune-weights{force=true}",),
}


@dataclass(frozen=True)
class ScaleRelu(RewritePass):
    """Multiplies every Relu by 1.01: wrong, but by less than what 4 bits may cost."""

    name: ClassVar[str] = "scale-relu"
    optional: ClassVar[bool] = True
    anchors: ClassVar[frozenset[str]] = frozenset({"Relu"})

    def rewrite(self, node: ir.Node, at: Rewriter, context: PassContext) -> str:
        """Replace."""
        at.replace(
            node.outputs[0], at.op("Mul", at.op("Relu", node.inputs[0]), at.const(np.float32(1.01), "more"))
        )
        return "1.01 times as much"


@dataclass(frozen=True)
class ScaleAlways(ScaleRelu):
    """The same, and no option."""

    optional: ClassVar[bool] = False


def compiled(model: Path, folder: Path, passes: list[Pass] | None = None, **more: Any) -> dict[str, Any]:
    options = CompileOptions(**{**SPARSE, **more})
    steps = [*pipeline(options), *passes] if passes else None
    with compile_model(model, options, output=folder, passes=steps) as executable:
        return {**executable.report, "certificate": executable.manifest.certificate}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_certificate_says_what_pruning_costs_and_that_the_rest_is_exact(
    precision: str, tmp_path: Path
) -> None:
    report = compiled(stack(tmp_path / "m.onnx"), tmp_path / "m", precision=precision)
    error, faithful = report["error"], report["error"]["faithful"]
    tolerance = {"fp32": 1e-4, "int8": 5e-2}[precision]
    assert error["ok"] and error["tolerance"] == 0.5 and error["scaled"] > 1e-3
    assert faithful["ok"] and faithful["scaled"] <= faithful["tolerance"] == tolerance
    assert faithful["reference"] == "the program after prune-weights, not optimized otherwise"
    assert faithful["outputs"].keys() == {"y", "before prune-weights: y"}
    assert faithful["outputs"]["before prune-weights: y"] <= 1e-4
    assert report["certificate"].faithful.outputs == faithful["outputs"]
    assert faithful["reference"] in (tmp_path / "m" / "report.html").read_text(encoding="utf-8")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "m")])
    assert "equal to the program after prune-weights" in " ".join(shown.output.split())


@pytest.mark.parametrize("first", [True, False])
def test_a_pass_that_is_wrong_by_less_than_pruning_costs_is_found_and_left_out(
    first: bool, tmp_path: Path
) -> None:
    options = CompileOptions(**SPARSE)
    steps = [*pipeline(options)]
    steps.insert(0 if first else len(steps), ScaleRelu())
    model = stack(tmp_path / "m.onnx")
    with compile_model(model, options, output=tmp_path / "m", passes=steps) as executable:
        report = executable.report
    reverted = {entry["name"]: entry["reverted"] for entry in report["passes"] if entry["reverted"]}
    assert reverted.keys() == {"scale-relu"} and "wrong result: scale-relu at node" in reverted["scale-relu"]
    assert report["error"]["faithful"]["ok"] and report["error"]["faithful"]["scaled"] < 1e-4


def test_what_no_option_undoes_is_refused_by_the_program_it_differs_from(tmp_path: Path) -> None:
    with pytest.raises(miaotui.VerificationError, match="the program after prune-weights"):
        compiled(stack(tmp_path / "m.onnx"), tmp_path / "m", [ScaleAlways()])
    assert not (tmp_path / "m").exists()


def test_pruning_that_costs_too_much_is_refused_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "pruned", 1e-6)
    with pytest.raises(miaotui.VerificationError, match="what prune-weights took away changes"):
        compiled(stack(tmp_path / "m.onnx"), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_budget_bounds_what_pruning_costs(tmp_path: Path) -> None:
    report = compiled(stack(tmp_path / "m.onnx"), tmp_path / "m", budget=1e-3)
    assert report["error"]["scaled"] <= 1e-3 == report["error"]["tolerance"]
    assert report["error"]["faithful"]["tolerance"] == 1e-4


def test_exact_compiles_have_nothing_else_to_be_faithful_to(tmp_path: Path) -> None:
    report = compiled(stack(tmp_path / "m.onnx"), tmp_path / "m", sparsity=None, enable=())
    assert report["error"]["faithful"] is None and report["certificate"].faithful is None
