"""The script for a GPU: its tables, its time, and what fails in it, tried with engines that only sleep."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from miaotui.runtime.counters import Without

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "check_gpu.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = util.spec_from_file_location("check_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    path = list(sys.path)
    module = sys.modules["check_gpu"] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def tables() -> ModuleType:
    """What writes them, which the script has loaded."""
    return sys.modules["gpu.gpu_report"]


def report(script: ModuleType, path: Path | None = None) -> Any:
    return script.Report(path, script.DRY, Without("no device"))


def nap(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def test_shapes_have_the_parameters_of_their_names(script: ModuleType) -> None:
    read = {name: shape.read / 1e9 for name, shape in script.SHAPES.items()}
    assert read["smollm2"] == pytest.approx(0.1345, rel=0.01)
    assert read["llama-1.1b"] == pytest.approx(1.034, rel=0.01)  # 1.1 with the embedding table
    assert read["llama-8b"] == pytest.approx(7.50, rel=0.01)
    assert script.SHAPES["llama-8b"].kept == 32 * 2 * 8 * 128 * 2


def test_an_engine_that_fails_is_a_row_with_its_reason_and_the_others_are_timed(script: ModuleType) -> None:
    def fail() -> None:
        raise RuntimeError("no kernel | here\nsecond line")

    made = report(script)
    case = script.Case("t", "batch 1", units=4, work=1e9, limit="memory", works={"torch.compile": 5e8})
    script.compare(made, case, {script.OURS: nap(0.001), "torch.compile": nap(0.003), "broken": fail})
    rows = {row.engine: row for row in made.rows}
    assert rows["broken"].note == "RuntimeError: no kernel / here" and rows["broken"].median_ms is None
    assert rows[script.OURS].ratio == 1 and rows["torch.compile"].ratio > 1
    assert rows[script.OURS].rate == pytest.approx(4e3 / rows[script.OURS].median_ms)
    assert rows[script.OURS].share is None  # a dry run has no share of an H200


def test_shares_are_of_the_work_of_the_engine(script: ModuleType) -> None:
    made = script.Report(None, script.Setting(rounds=2, stretch=0), Without("no device"))
    case = script.Case("t", "c", 1, tables().MEMORY * 1e-3, "memory", {"int4": tables().MEMORY * 0.5e-3})
    script.compare(made, case, {script.OURS: nap(0.002), "int4": nap(0.002)})
    whole, half = (row.share * row.median_ms for row in made.rows)
    assert (whole, half) == (pytest.approx(1.0), pytest.approx(0.5))
    assert "of memory" in tables().line(made.rows[0])


def test_a_section_out_of_time_leaves_its_rows_and_the_next_ones_run(
    script: ModuleType, tmp_path: Path
) -> None:
    def slow(made: Any) -> None:
        made.add(script.Row("slow", "a", script.OURS, 1.0))
        try:
            time.sleep(30)
        except Exception:
            made.add(script.Row("slow", "a", "swallowed"))

    def broken(made: Any) -> None:
        raise ValueError("out of device memory")

    def last(made: Any) -> None:
        made.add(script.Row("last", "b", script.OURS, 2.0))

    sections = {"slow": (0.2, slow), "broken": (0.2, broken), "last": (0.2, last)}
    rows = script.run(script.DRY, tmp_path / "out", sections, whole=0.6)
    assert [(row.table, row.engine) for row in rows] == [
        ("slow", script.OURS), ("slow", "all"), ("broken", "all"), ("last", script.OURS)
    ]  # fmt: skip
    assert rows[1].note.startswith("cut short after") and rows[2].note == "ValueError: out of device memory"
    text = (tmp_path / "out.md").read_text()
    assert "## slow" in text and "## last" in text and "a dry run" in text
    parts = [part.splitlines() for part in text.split("## ")[1:]]
    assert all(line.count("|") == tables().HEADER.count("|") for t in parts for line in t[2:] if line)
    assert (tmp_path / "out.json").exists()


def test_sections_fit_ten_minutes(script: ModuleType) -> None:
    assert sum(seconds for seconds, _ in script.SECTIONS.values()) <= 580


def test_tvms_sections_fit_ten_minutes_and_a_job_that_fails_is_a_row(script: ModuleType) -> None:
    spec = util.spec_from_file_location("check_tvm", SCRIPT.with_name("check_tvm.py"))
    assert spec is not None and spec.loader is not None
    path = list(sys.path)
    sys.path.insert(0, str(SCRIPT.parents[1]))
    module = sys.modules["check_tvm"] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path

    class Failing:
        def wait(self, job: Any) -> Path:
            raise ValueError(f"{job} has no rule")

    sections = module.sections(Failing())
    assert sum(seconds for seconds, _ in sections.values()) <= 580
    made = report(script)
    sections["fp32"][1](made)
    assert {row.case: row.note for row in made.rows}["bert"] == "ValueError: bert fp32 has no rule"
    assert len(made.rows) == len(module.MODELS)
