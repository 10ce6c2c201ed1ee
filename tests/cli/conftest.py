"""A command line to call, a driver that does what a test says, and a small model compiled once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from miaotui import driver
from miaotui.cli.app import app
from onnx import TensorProto, helper, numpy_helper
from support.command_line import Call
from typer.testing import CliRunner


@pytest.fixture(scope="session")
def call() -> Call:
    """``call("verb", …)`` runs the command line in this process; stdout and stderr apart."""
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(a) for a in arguments])


@pytest.fixture
def compile_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes ``driver.compile`` raise."""

    def arrange(error: BaseException) -> None:
        def compile_model(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setitem(vars(driver), "compile", compile_model)  # it is loaded on first use

    return arrange


def write_model(path: Path, hidden: int = 16) -> Path:
    """x float32[batch, 8] → MatMul, Add, Relu, MatMul → y float32[batch, 4], opset 17."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc1/MatMul"),
        helper.make_node("Add", ["h", "b"], ["hb"], name="fc1/Add"),
        helper.make_node("Relu", ["hb"], ["r"], name="act/Relu"),
        helper.make_node("Identity", ["r"], ["i"], name="drop/Identity"),
        helper.make_node("MatMul", ["i", "v"], ["y"], name="fc2/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight("w", 8, hidden), weight("b", hidden), weight("v", hidden, 4)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small ONNX file."""
    return write_model(tmp_path / "tiny.onnx")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, call: Call) -> Path:
    """The small model compiled once through the command line."""
    place = tmp_path_factory.mktemp("compiled")
    source = write_model(place / "tiny.onnx")
    result = call("compile", source, "-o", place / "tiny.miaotui", "--timing", "1", "-t", "1", "-q")
    assert result.exit_code == 0, result.stderr
    return place / "tiny.miaotui"
