"""The waterfall: figures add up from the source to the result, and what has none is named with the reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.driver.page import page_of
from miaotui.driver.prefixes import is_approximating
from miaotui.passes.pipeline import all_passes

WIDTH = 128
APPROXIMATING = {name for name, step in all_passes().items() if is_approximating(step)}


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x: float32[batch, 128] → Relu(x·w)·v, as an ONNX file."""
    rng = np.random.default_rng(0)
    b = Builder()
    hidden = b.op("Relu", b.op("MatMul", b.input("x", ("batch", WIDTH)), weight(b, rng, "w")))
    b.output(b.op("MatMul", hidden, weight(b, rng, "v")), "y")
    path = tmp_path_factory.mktemp("mlp") / "mlp.onnx"
    ir.save(b.model(), path)
    return path


def weight(b: Builder, rng: np.random.Generator, name: str) -> ir.Value:
    return b.weight(name, rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5)


def report_of(model: Path, folder: Path, **options: Any) -> dict[str, Any]:
    with miaotui.compile(model, output=folder, threads=1, backend="ort", **options) as executable:
        return executable.report


def test_figures_add_up_from_the_source_to_the_result(mlp: Path, tmp_path: Path) -> None:
    report = report_of(mlp, tmp_path / "m", precision="int8", timing=60.0)
    fall = report["waterfall"]
    rows = {row["pass"]: row for row in fall["rows"]}
    measured = [row for row in fall["rows"] if row["how"] == "prefix"]
    assert measured and {row["pass"] for row in measured} <= APPROXIMATING
    assert fall["unmeasured"] == [] and fall["why"] == ""
    seconds = sum(row["seconds"] for row in measured) + fall["exact"]["seconds"]
    latency = report["latency"]
    assert fall["total"]["seconds"] == pytest.approx(seconds)
    assert seconds == pytest.approx(latency["optimized"]["median"] - latency["source"]["median"])
    assert sum(row["bytes"] for row in fall["rows"]) == fall["total"]["bytes"]
    assert fall["total"]["bytes"] < -WIDTH * WIDTH * 2 * 2
    errors = [row["error"] for row in measured]
    assert 0 < sum(errors) < report["error"]["tolerance"]
    assert fall["exact"]["error"] < 1e-5 < sum(errors)
    assert all(row["error"] is None for name, row in rows.items() if name not in APPROXIMATING)


def test_without_timing_it_says_what_is_not_measured(mlp: Path, tmp_path: Path) -> None:
    fall = report_of(mlp, tmp_path / "m", precision="int8", timing=0.0)["waterfall"]
    fired = [row["pass"] for row in fall["rows"] if row["nodes"] and row["pass"] in APPROXIMATING]
    assert fall["unmeasured"] == fired != []
    assert fall["why"] == "--timing is 0"
    assert fall["exact"] is fall["total"]["seconds"] is None
    assert fall["total"]["error"] > 0


def test_passes_that_time_was_too_short_for_are_told_together(mlp: Path, tmp_path: Path) -> None:
    sparse = {"sparsity": "0.001", "enable": ("prune-weights{force=true}",)}
    fall = report_of(mlp, tmp_path / "m", precision="int8", timing=1e-6, **sparse)["waterfall"]
    named = [row for row in fall["rows"] if row["nodes"] and row["pass"] in APPROXIMATING]
    *others, last = named
    assert others, "one pass alone fired: nothing is told together"
    assert all(row["how"] == last["pass"] and row["error"] is None for row in others)
    assert last["how"] == "prefix" and last["error"] > 0
    assert fall["unmeasured"] == [] and "-O3" in fall["why"]
    assert fall["exact"]["error"] < 1e-5


def test_what_is_exact_costs_no_measurement(mlp: Path, tmp_path: Path) -> None:
    report = report_of(mlp, tmp_path / "m", timing=0.1)
    assert report["waterfall"]["unmeasured"] == []
    assert report["waterfall"]["exact"] is None
    assert "waterfall" not in {stage["name"] for stage in report["stages"]}
    assert {row["how"] for row in report["waterfall"]["rows"]} <= {"", "left out"}


def test_the_page_stands_alone_and_tells_every_row(mlp: Path, tmp_path: Path) -> None:
    report = report_of(mlp, tmp_path / "m", precision="int8", timing=0.0)
    page = (tmp_path / "m" / "report.html").read_text(encoding="utf-8")
    assert page == page_of(report)
    assert re.search(r"<script|https?:|src=|@import|url\(", page) is None
    for row in report["waterfall"]["rows"]:
        assert f"<td>{row['pass']}</td>" in page
    report["model"] = "<b>&"
    assert "<b>&" not in page_of(report) and "&lt;b&gt;&amp;" in page_of(report)
