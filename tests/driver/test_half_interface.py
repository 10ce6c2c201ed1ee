"""Inputs and outputs in 16 bits: in the manifest, at run time, and wherever source and executable meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import onnx_ir as ir
import pytest
from miaotui import InputError, driver
from miaotui.compiler.options import CompileOptions
from support.layers import WIDTH, stack


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_executable_takes_and_gives_what_was_asked_for(precision: str, tmp_path: Path) -> None:
    model, folder = stack(tmp_path / "m.onnx"), tmp_path / "m"
    dtype = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[precision]
    options: dict[str, Any] = {"precision": precision, "backend": "ort", "timing": 0.2, "keep_source": True}
    enable = (f"store-weights{{dtype={precision},io=true}}",)
    with driver.compile(model, CompileOptions(**options, enable=enable), output=folder) as executable:
        assert {spec.dtype for spec in (*executable.inputs, *executable.outputs)} == {dtype}
        assert executable.report["error"]["ok"] and executable.report["latency"] is not None
        x = np.random.default_rng(0).standard_normal((2, WIDTH)).astype(np.float32)
        narrow = x.astype(dtype.numpy())
        made = executable.run({"x": narrow})["y"]
        wanted = executable.run({"x": narrow.astype(np.float32)}, "source")["y"]
        assert made.dtype == dtype.numpy() and wanted.dtype == np.float32
        np.testing.assert_allclose(made.astype(np.float32), wanted, atol=4e-2 * np.abs(wanted).max())
        with pytest.raises(InputError, match="is float32, not"):
            executable.run({"x": x})
    assert miaotui.verify(folder).ok and miaotui.verify(folder, model).ok
    with miaotui.open(folder) as executable:
        assert executable.verify(variant="source").error == 0
        assert executable.bench(seconds=0.1, runs=6).speedup is not None


def test_without_asking_they_stay(tmp_path: Path) -> None:
    options = CompileOptions(precision="fp16", backend="ort", timing=0)
    with driver.compile(stack(tmp_path / "m.onnx"), options, output=tmp_path / "m") as executable:
        assert {spec.dtype for spec in (*executable.inputs, *executable.outputs)} == {ir.DataType.FLOAT}
        assert not executable.manifest.source_entries
