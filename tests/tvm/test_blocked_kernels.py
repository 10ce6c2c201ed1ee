"""Products with int8 and int4 weights in TIR against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from miaotui.compiler.codegen.tvm.kernels import Cpu, blocked, blocked_integers
from support.tir import Array, Compiled, cpu, runs
from support.tir import blocked as weight_of

COLUMNS, ROWS = 256, 50

WEIGHTS = {
    "int4/32": ("INT4", 32, {}),
    "uint4/32 zero points": ("UINT4", 32, {"zeros": True}),
    "uint4/64 offsets": ("UINT4", 64, {"offsets": True}),
    "int8/64": ("INT8", 64, {}),
    "int8/16": ("INT8", 16, {}),
    "uint8/128 both": ("UINT8", 128, {"zeros": True, "offsets": True}),
}


def scaled(got: Array, want: Array) -> float:
    return float(np.max(np.abs(got - want)) / max(1.0, np.max(np.abs(want))))


@pytest.mark.parametrize("name", WEIGHTS)
def test_multiplies_as_dequantized_weights_do(name: str) -> None:
    dtype, block, options = WEIGHTS[name]
    weight = weight_of(ROWS, COLUMNS, dtype, block, **options)
    rows = {"INT4": 1, "INT8": 5}.get(dtype, 16)
    x = np.random.default_rng(1).standard_normal((rows, COLUMNS), dtype=np.float32)
    (y,) = Compiled(blocked.matmul(weight, rows, cpu()))([x], (rows, ROWS))
    assert scaled(y, x @ weight.numpy().T) < 2e-6


def test_one_kernel_takes_any_number_of_rows_and_adds_a_bias() -> None:
    weight, random = weight_of(ROWS, COLUMNS, "INT4", 32), np.random.default_rng(1)
    bias = random.standard_normal(ROWS, dtype=np.float32)
    run = Compiled(blocked.matmul(weight, None, cpu(), bias=True, activation="silu"))
    for rows in (1, 3, 4, 21):
        x = random.standard_normal((rows, COLUMNS), dtype=np.float32)
        (y,) = run([x, bias], (rows, ROWS))
        sums = x @ weight.numpy().T + bias
        assert scaled(y, sums / (1 + np.exp(-sums.astype(np.float64)))) < 2e-6


@pytest.mark.parametrize("arch", ["x86-64-v3", "x86-64"])
def test_narrower_vectors_give_the_same(arch: str) -> None:
    if not runs(arch):
        pytest.skip(f"this CPU does not run {arch}")
    weight = weight_of(ROWS, COLUMNS, "UINT4", 32)
    x = np.random.default_rng(1).standard_normal((3, COLUMNS), dtype=np.float32)
    (y,) = Compiled(blocked.matmul(weight, 3, cpu(arch)), arch)([x], (3, ROWS))
    assert scaled(y, x @ weight.numpy().T) < 2e-6


@pytest.mark.parametrize("name", WEIGHTS)
def test_integers_multiply_rounded_activations_exactly(name: str) -> None:
    if not cpu().vnni:
        pytest.skip("this CPU has no AVX512-VNNI")
    dtype, block, options = WEIGHTS[name]
    weight = weight_of(ROWS, COLUMNS, dtype, block, **options)
    rows = {"INT4": 1, "INT8": 9}.get(dtype, 3)
    x = np.random.default_rng(1).standard_normal((rows, COLUMNS), dtype=np.float32)
    x[-1, :block] = 0
    (y,) = Compiled(blocked_integers.matmul_integers(weight, rows, cpu()))([x], (rows, ROWS))
    assert scaled(y, rounded(x, block) @ weight.numpy().T) < 3e-6


def rounded(x: Array, block: int) -> Array:
    """Each block of a row in whole 127ths of its greatest magnitude."""
    parts = x.reshape(len(x), -1, block)
    most = np.abs(parts).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return (np.rint(parts * inverse) * (most * np.float32(1 / 127))).reshape(x.shape)


def test_declines_other_bits_and_odd_blocks() -> None:
    assert blocked.declines(weight_of(16, 64, "UINT4", 32)) is None
    assert "no multiple of 16" in str(blocked.declines(weight_of(16, 64, "INT8", 8)))
    assert "UINT2" in str(blocked.declines(weight_of(16, 64, "UINT2", 32)))
    assert "no AVX512-VNNI" in str(blocked_integers.declines(weight_of(16, 64, "INT8", 32), Cpu(8)))
