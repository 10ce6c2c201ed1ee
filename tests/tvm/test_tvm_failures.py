"""What is refused and what is left behind: unsupported nodes, foreign versions, passes of TVM's that fail."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.tvm import compile as pipeline
from miaotui.compiler.codegen.tvm import versions
from miaotui.compiler.codegen.tvm.backend import TvmBackend
from miaotui.compiler.errors import ToolError, UnsupportedError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.compiler.weights import WeightStore
from miaotui.driver import candidates


def program(*operators: str) -> Program:
    b = Builder()
    x = b.input("x", ("batch", 8))
    for operator in operators:
        x = b.op(operator, x)
    b.output(x, "y")
    return b.program()


def build(made: Program, folder: Path) -> None:
    with WeightStore(folder / "weights.bin") as weights:
        TvmBackend().build(made, Target("cpu"), folder, weights)


def test_names_all_nodes_without_a_rule_before_any_work(tmp_path: Path) -> None:
    b = Builder()
    x = b.input("x", ("batch", 8))
    b.output(b.op("NonZero", x), "places")
    b.output(b.op("Det", b.op("MatMul", x, b.weight("w", np.ones((8, 8))))), "det")
    with pytest.raises(UnsupportedError) as caught:
        build(b.program(), tmp_path)
    assert [p.place.rsplit(" ", 1)[1] for p in caught.value.problems] == ["(NonZero)", "(Det)"]


def failing(tvm: Any, module: Any, lanes: int) -> Any:
    """A pass that fails on a Softmax."""
    if any("softmax" in str(g.name_hint) for g, _ in module.functions_items()):
        raise ValueError("no softmax today")
    return module


def test_a_failing_pass_leaves_the_kernel_it_fails_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "scheduled", failing)
    with pytest.raises(pipeline.PassError, match="no softmax today") as caught:
        build(program("Softmax", "Exp"), tmp_path)
    path = Path(caught.value.problems[0].fix.split()[0])
    try:
        text = path.read_text("utf-8")
        assert "softmax" in text and "R.function" not in text
        done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        path.unlink()
        path.parent.rmdir()


def test_under_auto_a_failing_pass_leaves_its_file_and_another_backend_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIAOTUI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(candidates, "_without_tvm", lambda *_: {"tvm": "", "ort+tvm": "one is enough"})
    monkeypatch.setattr(pipeline, "scheduled", failing)
    ir.save(program("Softmax", "Exp").main, tmp_path / "model.onnx")
    with miaotui.compile(tmp_path / "model.onnx", output=tmp_path / "m", timing=0.05, threads=1) as made:
        assert made.manifest.default != "cpu-tvm" and made.verify().ok
        told = {row["backend"]: (row["state"], row["why"]) for row in made.report["choice"]["candidates"]}
    state, why = told["tvm"]
    assert state == "failed" and "no softmax today" in why
    [path] = map(Path, re.findall(r"\S+/schedule\.py", why))
    try:
        assert "softmax" in path.read_text("utf-8")
    finally:
        path.unlink()
        path.parent.rmdir()


def test_refuses_a_pair_that_is_not_known_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"apache-tvm": "0.27.0", "apache-tvm-ffi": "0.1.15.post2"}
    monkeypatch.setattr(versions, "version_of", found.__getitem__)
    with pytest.raises(ToolError, match=r"apache-tvm-ffi: 0.1.15.post2 is not known to work.*miaotui\[tvm\]"):
        versions.check_pair()
    found["apache-tvm"] = "0.30.0"
    with pytest.raises(ToolError, match=r"apache-tvm: 0.30.0 is none of 0.27"):
        versions.check_pair()
