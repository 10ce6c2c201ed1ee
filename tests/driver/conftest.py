"""A small classifier on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import Builder


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """x: float32[batch, 32] → Relu(x·w + b)·v → y: float32[batch, 8], as an ONNX file."""
    rng = np.random.default_rng(0)
    b = Builder()
    x = b.input("x", ("batch", 32))
    hidden = b.op(
        "Add", b.op("MatMul", x, b.weight("w", rng.normal(size=(32, 64)))), b.weight("b", np.ones(64))
    )
    active = b.op("Relu", hidden, name="/head/Relu")
    b.output(b.op("MatMul", active, b.weight("v", rng.normal(size=(64, 8)))), "y")
    path = tmp_path / "classifier.onnx"
    ir.save(b.model(), path)
    return path
