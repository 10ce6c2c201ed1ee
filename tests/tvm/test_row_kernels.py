"""Normalizations, softmax, elementwise chains and their functions in TIR against numpy in float64."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
from miaotui.compiler.codegen.tvm.kernels import chains, norms
from miaotui.compiler.codegen.tvm.kernels import math as functions
from support.tir import Array, Compiled, cpu

BOUND = 2e-6
RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> Array:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def close(got: Array, want: Array, bound: float = BOUND) -> None:
    assert np.max(np.abs(got - want) / np.maximum(1.0, np.abs(want))) < bound


@pytest.mark.parametrize(("rows", "columns"), [(1, 7), (3, 100), (None, 384)])
def test_layer_norm_of_a_sum(rows: int | None, columns: int) -> None:
    run = Compiled(norms.layer_norm(rows, columns, cpu(), epsilon=1e-5, skip=True))
    count = rows or 5
    x, skip, scale, bias = (
        numbers(count, columns) + 3,
        numbers(count, columns),
        numbers(columns),
        numbers(columns),
    )
    total, y = run([x, skip, scale, bias], x.shape, x.shape)
    exact = (x + skip).astype(np.float64)
    shift = exact - exact.mean(-1, keepdims=True)
    close(total, x + skip)
    close(y, shift / np.sqrt((shift**2).mean(-1, keepdims=True) + 1e-5) * scale + bias)


@pytest.mark.parametrize(("rows", "columns"), [(1, 33), (None, 576)])
def test_rms_norm(rows: int | None, columns: int) -> None:
    run = Compiled(norms.rms_norm(rows, columns, cpu(), epsilon=1e-5))
    x, scale = numbers(rows or 4, columns), numbers(columns)
    (y,) = run([x, scale], x.shape)
    exact = x.astype(np.float64)
    close(y, exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-5) * scale)


@pytest.mark.parametrize("columns", [1, 50, None])
def test_softmax_with_masked_columns(columns: int | None) -> None:
    run = Compiled(norms.softmax(None, columns, cpu()))
    x = numbers(4, columns or 77) * 20
    x[1, 1:] = -math.inf
    (y,) = run([x], x.shape)
    grown = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    close(y, grown / grown.sum(-1, keepdims=True), 3e-7)


@pytest.mark.parametrize(("rows", "columns"), [(1, 5), (3, 9001), (None, 64)])
def test_chain_reads_rows_and_scalars(rows: int | None, columns: int) -> None:
    def chain(x: object, row: object, scalar: object) -> object:
        return functions.silu(x) * row + scalar

    run = Compiled(
        chains.elementwise("silu_mul_add", ["whole", "row", "scalar"], chain, rows, columns, cpu())
    )
    x, row, scalar = numbers(rows or 6, columns), numbers(columns), numbers(1)
    (y,) = run([x, row, scalar], x.shape)
    close(y, x / (1 + np.exp(-x.astype(np.float64))) * row + scalar)


FUNCTIONS: dict[str, tuple[Callable[..., object], Callable[[float], float]]] = {
    "exp": (functions.exp, math.exp),
    "tanh": (functions.tanh, math.tanh),
    "erf": (functions.erf, math.erf),
    "sigmoid": (functions.sigmoid, lambda x: 1 / (1 + math.exp(-x))),
    "gelu": (functions.gelu, lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    "relu": (functions.relu, lambda x: max(x, 0.0)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_within_float32(name: str) -> None:
    made, exact = FUNCTIONS[name]
    x = np.concatenate([np.linspace(-86, 88, 6001), np.linspace(-2, 2, 6001)]).astype(np.float32)[None]
    x = np.concatenate([x, [[np.nan]]], 1, dtype=np.float32)
    (y,) = Compiled(chains.elementwise(name, ["whole"], made, 1, x.size, cpu()))([x], x.shape)
    want = np.array([exact(float(v)) for v in x[0, :-1]])
    close(y[0, :-1], want, 8e-7)
    assert np.isnan(y[0, -1])


def test_exp_reaches_zero_and_infinity() -> None:
    x = np.array([[-math.inf, -104, -88, 89, math.inf, 88.7]], np.float32)
    (y,) = Compiled(chains.elementwise("exp", ["whole"], functions.exp, 1, 6, cpu()))([x], x.shape)
    assert y[0, :5].tolist() == [0, 0, 0, math.inf, math.inf]
    assert y[0, 5] == pytest.approx(math.exp(float(x[0, 5])), rel=1e-6)


def test_functions_become_vector_instructions() -> None:
    """No calls of libm, which take one number at a time."""
    kernel = chains.elementwise("gelu", ["whole"], functions.gelu, 1, 64, cpu())
    text = Compiled(kernel).library.mod.inspect_source("asm")
    assert "vmulps" in text or "mulps" in text
    assert not re.findall(r"\bcall\w*\s.*(?:erf|exp|floor)", text)
