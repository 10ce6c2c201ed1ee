"""The block-sparse product in TIR against numpy."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.tvm.kernels import Cpu, sparse
from miaotui.compiler.codegen.tvm.kernels.sparse import Packed, declines
from miaotui.compiler.codegen.tvm.versions import require_ffi
from support.tir import Array, Compiled, cpu, runs, sparse_weight

BOUND = 2e-6
"""Scaled error: float32 sums of up to 70 products in another order."""


def scaled(got: Array, want: Array) -> float:
    return float(np.max(np.abs(got - want)) / max(1.0, np.max(np.abs(want))))


@pytest.mark.parametrize("rows", [1, 8, 37])
@pytest.mark.parametrize("outputs", [16, 50])
def test_multiplies_known_numbers_of_rows(rows: int, outputs: int) -> None:
    weight = sparse_weight(outputs, 70, 0.3)
    kernel = sparse.matmul(ir.Tensor(weight), rows, cpu(), transposed=True)
    x = np.random.default_rng(1).standard_normal((rows, 70), dtype=np.float32)
    (y,) = Compiled(kernel)([x], (rows, outputs))
    assert scaled(y, x @ weight.T) < BOUND


def test_one_kernel_takes_any_number_of_rows_and_adds_a_bias() -> None:
    weight, random = sparse_weight(40, 33, 0.4), np.random.default_rng(1)
    bias = random.standard_normal(40, dtype=np.float32)
    run = Compiled(sparse.matmul(ir.Tensor(weight.T.copy()), None, cpu(), bias=True, activation="relu"))
    for rows in (1, 7, 8, 16, 31):
        x = random.standard_normal((rows, 33), dtype=np.float32)
        (y,) = run([x, bias], (rows, 40))
        assert scaled(y, np.maximum(x @ weight.T + bias, 0)) < BOUND


def test_tiles_may_hold_nothing_or_everything() -> None:
    weight = sparse_weight(48, 20, 1.0)
    weight[:16] = 0
    weight[32:, :-1] = 0
    kernel = sparse.matmul(ir.Tensor(weight), 3, cpu(), transposed=True)
    x = np.random.default_rng(1).standard_normal((3, 20), dtype=np.float32)
    (y,) = Compiled(kernel)([x], (3, 48))
    assert not y[:, :16].any()
    assert scaled(y, x @ weight.T) < BOUND


@pytest.mark.parametrize("arch", ["x86-64-v3", "x86-64"])
def test_narrower_vectors_give_the_same(arch: str) -> None:
    if not runs(arch):
        pytest.skip(f"this CPU does not run {arch}")
    weight = sparse_weight(24, 40, 0.3)
    kernel = sparse.matmul(ir.Tensor(weight), 5, cpu(arch), transposed=True)
    x = np.random.default_rng(1).standard_normal((5, 40), dtype=np.float32)
    (y,) = Compiled(kernel, arch)([x], (5, 24))
    assert scaled(y, x @ weight.T) < BOUND


def test_layers_of_one_shape_share_a_function() -> None:
    made = [sparse.matmul(ir.Tensor(sparse_weight(32, 40, 0.3, seed)), 1, Cpu(16, 1)) for seed in (0, 1)]
    assert require_ffi().structural_equal(made[0].function, made[1].function)
    assert made[0].weights[0].shape != made[1].weights[0].shape


def test_tasks_have_about_as_many_blocks() -> None:
    weight = sparse_weight(16 * 64, 256, 0.05)
    weight[: 16 * 16] = 1.0
    packed = Packed(ir.Tensor(weight), True, 8)
    loads = np.diff(packed.starts[packed.bounds])
    assert loads.sum() == packed.blocks
    assert loads.max() < 1.5 * packed.blocks / 8


def test_declines_what_is_nearly_dense_or_no_matrix() -> None:
    assert declines(ir.Tensor(sparse_weight(64, 32, 0.2)), True) is None
    assert "not zero" in str(declines(ir.Tensor(sparse_weight(64, 32, 0.9)), True))
    assert "fewer than 16" in str(declines(ir.Tensor(np.zeros((8, 4), np.float32)), True))
    assert "no float32 matrix" in str(declines(ir.Tensor(np.zeros((32, 4), np.float16)), True))
