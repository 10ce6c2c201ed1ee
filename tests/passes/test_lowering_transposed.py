"""read-transposed: tied weights are read as they lie, equal in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.lowering.onnxruntime.transposed import ReadTransposed
from support.rewriting import check, operators, reasons, run_pass

RANDOM = np.random.default_rng(0)


def tied(dtype: Any = np.float32, constant: bool = True) -> Program:
    b = Builder()
    table = ir.tensor(RANDOM.standard_normal((12, 8)).astype(dtype), name="table")
    weight = ir.val("table", table.dtype, (12, 8), const_value=table)
    if constant:
        b.graph.register_initializer(weight)
    else:
        weight = b.input("table", (12, 8), table.dtype)
    embedded = b.op("Gather", weight, b.input("ids", ("batch", "seq"), INT64))
    b.output(b.op("MatMul", embedded, b.op("Transpose", weight, perm=[1, 0])), "logits")
    return b.program()


FEEDS: list[dict[str, np.ndarray[Any, Any]]] = [
    {"ids": RANDOM.integers(0, 12, shape)} for shape in ((1, 1), (1, 9), (3, 5), (1, 0))
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tied_head_reads_the_table(dtype: Any) -> None:
    program = tied(dtype)
    check(ReadTransposed(), program, FEEDS)
    assert operators(program) == {"Gather": 1, "com.microsoft::FusedMatMul": 1}


def test_a_weight_that_varies_stays() -> None:
    assert run_pass(ReadTransposed(), tied(constant=False)).changed == 0


def test_float16_has_a_kernel_on_cuda_only() -> None:
    assert "no cpu kernel" in reasons(run_pass(ReadTransposed(), tied(np.float16)))
    assert run_pass(ReadTransposed(), tied(np.float16), PassContext(Target("cuda"))).changed == 1
