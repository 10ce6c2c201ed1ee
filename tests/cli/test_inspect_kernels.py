"""``inspect`` of code for a GPU: what its kernels take of a multiprocessor, compiled here without one."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import FLOAT16, Builder
from support.command_line import Call


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("nvcc") is None or importlib.util.find_spec("tvm") is None, reason="needs nvcc and TVM"
)
def test_kernels_are_listed_with_registers_and_shared_memory_of_both_kinds(
    call: Call, tmp_path: Path
) -> None:
    b = Builder()
    x = b.input("x", (32, 64), FLOAT16)
    h = b.op("MatMul", x, b.weight("w", np.full((64, 64), 0.01, np.float16)))
    b.output(b.op("Softmax", h, axis=-1), "y")
    model, folder = tmp_path / "model.onnx", tmp_path / "model.miaotui"
    ir.save(b.model(), model)
    # in a process of its own: on a machine without a driver its stand-in stays loaded
    options = ["--target", "cuda:sm_90", "--backend", "tvm", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "miaotui", "compile", model, "-o", folder, *options],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    shown = json.loads(call("inspect", folder, "--format", "json").stdout)
    [variant] = [v for v in shown["variants"].values() if v["backend"] == "tvm"]
    kernels = {k["name"]: k for k in json.loads(variant["settings"]["kernels"])}
    [product] = [k for name, k in kernels.items() if name.startswith("tensor_matmul_fp16_64x64")]
    [softmax] = [k for name, k in kernels.items() if "softmax" in name]
    assert product["dynamic"] > 16 << 10 and product["shared"] == 0
    assert softmax["dynamic"] == 0 and softmax["shared"] > 0
    assert all(0 < k["registers"] < 256 and k["arch"] == "sm_90" for k in kernels.values())

    lines = call("inspect", folder).stdout.splitlines()
    [head] = [line for line in lines if "registers" in line]
    assert head.split() == ["kernel", "arch", "registers", "shared", "dynamic", "spilled"]
    [row] = [line.split() for line in lines if line.split()[:1] == [product["name"]]]
    assert row[1:] == ["sm_90", *(str(product[key]) for key in ("registers", "shared", "dynamic", "spilled"))]
