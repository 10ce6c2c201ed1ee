"""GPTQ: against a slow reference, better than rounding, and safe with dead channels and few samples."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.compiler.reference import Array
from miaotui.passes.base import PassContext, PassResult
from miaotui.passes.lowering.onnxruntime.blocked import UseBlockKernels
from miaotui.passes.moments import Moment
from miaotui.passes.precision.blocks import rounded_weight
from miaotui.passes.precision.gptq import Hessian, gptq
from miaotui.passes.precision.grids import SCHEMES, Grid, Rounding, best_grid, spanning
from miaotui.passes.precision.weights import QuantizeWeights
from support import native_programs
from support.rewriting import assert_same, ort_run, reasons, run_pass

RNG = np.random.default_rng(8)
ROUNDING = Rounding(4, 16, "asymmetric", "gptq")


def correlated(columns: int = 64, rows: int = 500) -> Array:
    """Activations float32[rows, columns] that share a few causes, of channels of different size."""
    causes = RNG.standard_normal((rows, 8)) @ RNG.standard_normal((8, columns))
    noise = 0.3 * RNG.standard_normal((rows, columns))
    return ((causes + noise) * np.exp(0.7 * RNG.standard_normal(columns))).astype(np.float32)


def moment_of(x: Array) -> Moment:
    return Moment(x.T @ x / len(x), len(x))


def weight(rows: int = 24, columns: int = 64) -> Array:
    return RNG.standard_normal((rows, columns)).astype(np.float32)


def made(codes: Array, grid: Grid, shape: tuple[int, ...]) -> Array:
    return grid.values(codes.reshape(len(grid.scale), -1)).reshape(shape)


def by_rounding(w: Array, rounding: Rounding) -> Array:
    parts = w.reshape(-1, rounding.block)
    grid = spanning(parts, rounding)
    return made(grid.codes(parts, rounding), grid, w.shape)


def slow_gptq(w: Array, moment: Array, rounding: Rounding) -> Array:
    """The paper's recursion literally: after each column the inverse Hessian of those that are left."""
    hessian = moment.astype(np.float64)
    hessian += np.eye(len(hessian)) * rounding.damping * np.diagonal(hessian).mean()
    power = np.diagonal(hessian).astype(np.float32)
    columns = list(range(w.shape[1]))
    if rounding.ordered:
        columns.sort(key=lambda c: -moment[c, c])
    left, result = w.astype(np.float64), np.empty_like(w)
    size = rounding.block

    def grid_of(source: Array, block: int) -> Grid:
        at = slice(block * size, (block + 1) * size)
        return best_grid(source[:, at].astype(np.float32), power[None, at], rounding)

    grids = {b: grid_of(w, b) for b in range(w.shape[1] // size)} if rounding.ordered else {}
    while columns:
        column = columns[0]
        if column // size not in grids:
            grids[column // size] = grid_of(left, column // size)
        grid = grids[column // size]
        own = left[:, column].astype(np.float32)[:, None]
        result[:, column] = grid.values(grid.codes(own, rounding))[:, 0]
        inverse = np.linalg.inv(hessian[np.ix_(columns, columns)])
        error = (left[:, column] - result[:, column]) / inverse[0, 0]
        left[:, columns] -= np.outer(error, inverse[0])
        columns = columns[1:]
    return result


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_equals_the_slow_reference(scheme: str, ordered: bool) -> None:
    w, moment = weight(), moment_of(correlated())
    rounding = replace(ROUNDING, scheme=scheme, ordered=ordered)
    codes, grid = gptq(w, Hessian.of(moment.matrix, rounding), rounding)
    wanted = slow_gptq(w, moment.matrix, rounding)
    close = np.isclose(made(codes, grid, w.shape), wanted, rtol=1e-4, atol=1e-5)
    # float32 and float64 part ways where a number lies in the middle of two codes, and that row differs on
    assert close.all(1).mean() > 0.8
    ratio = moment.error(made(codes, grid, w.shape) - w) / moment.error(wanted - w)
    assert 0.97 < ratio < 1.03


@pytest.mark.parametrize("scheme", SCHEMES)
def test_beats_rounding_and_searching_on_correlated_inputs(scheme: str) -> None:
    w, x = weight(), correlated()
    moment = moment_of(x)
    errors = {}
    for method in ("rtn", "search", "gptq"):
        rounding = replace(ROUNDING, scheme=scheme, method=method)
        shape = Builder().weight("w", w).const_value
        assert shape is not None
        found = rounded_weight(shape, False, rounding, lambda: moment)
        share = found.error()
        assert share is not None
        direct = np.square(x @ (found.weight.numpy() - w).T).sum() / np.square(x @ w.T).sum()
        np.testing.assert_allclose(share, direct, rtol=1e-3)
        errors[method] = share
    assert errors["search"] < 0.95 * errors["rtn"]
    assert errors["gptq"] < 0.5 * errors["rtn"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_sweeps_never_make_it_worse(scheme: str) -> None:
    w, moment = weight(), moment_of(correlated())
    errors = []
    for sweeps in (0, 1, 2, 6):
        rounding = replace(ROUNDING, scheme=scheme, sweeps=sweeps, ordered=True)
        hessian = Hessian.of(moment.matrix, rounding)
        codes, grid = gptq(w, hessian, rounding)
        low, high = rounding.span
        assert codes.min() >= low and codes.max() <= high
        assert (grid.zero == np.rint(grid.zero)).all()
        errors.append(Moment(hessian.matrix, 1).error(made(codes, grid, w.shape) - w))
    assert all(after <= before * 1.0001 for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("case", ["dead channels", "few samples", "nothing measured but zeros", "one value"])
def test_takes_moments_of_low_rank(case: str, ordered: bool) -> None:
    w, x = weight(), correlated()
    if case == "dead channels":
        x[:, 5:40] = 0
    elif case == "few samples":
        x = x[:7]
    elif case == "one value":
        x[:] = 1
    else:
        x[:] = 0
    moment = moment_of(x)
    rounding = replace(ROUNDING, sweeps=2, ordered=ordered)
    codes, grid = gptq(w, Hessian.of(moment.matrix, rounding), rounding)
    back = made(codes, grid, w.shape)
    assert np.isfinite(back).all()
    assert np.abs(back - w).max() < 0.5 * np.abs(w).max()  # channels without a signal keep their weights
    assert moment.error(back - w) <= moment.error(by_rounding(w, rounding) - w) * 1.001


def test_zero_and_constant_weights_stay_what_they_are() -> None:
    moment = moment_of(correlated())
    for value in (0.0, 2.0):
        w = np.full((4, 64), value, np.float32)
        for scheme in SCHEMES:
            rounding = replace(ROUNDING, scheme=scheme, sweeps=1)
            codes, grid = gptq(w, Hessian.of(moment.matrix, rounding), rounding)
            np.testing.assert_allclose(made(codes, grid, w.shape), w, rtol=2**-7)


def told(result: PassResult) -> str:
    return "\n".join(map(str, result.hits))


def layer(columns: int = 64) -> Program:
    b = Builder()
    x = b.input("x", ("rows", columns))
    h = b.op("Relu", x, name="h")
    y = b.op("MatMul", h, b.weight("turned", RNG.standard_normal((columns, 32))))
    z = b.op("Gemm", h, b.weight("plain", RNG.standard_normal((32, columns))), transB=1)
    b.output(b.op("Relu", b.op("Add", y, z)), "y")
    return b.program()


@pytest.mark.parametrize(
    ("bits", "measured", "method"), [(4, True, "gptq"), (4, False, "search"), (8, True, "search")]
)
def test_auto_takes_what_the_measurements_allow_and_says_the_error(
    bits: int, measured: bool, method: str
) -> None:
    moments = {"h": moment_of(correlated())} if measured else None
    text = told(run_pass(QuantizeWeights(bits=bits, least=1), layer(), PassContext(moments=moments)))
    assert text.count(f", {method}, ") == 2
    assert text.count("relative output error" if measured else "activations not measured") == 2


@pytest.mark.parametrize(
    ("rows", "directions", "method"), [(64, 64, "search"), (64, 8, "gptq"), (400, 64, "gptq")]
)
def test_auto_asks_for_more_rows_than_inputs_have_directions(rows: int, directions: int, method: str) -> None:
    rng = np.random.default_rng(4)
    mix = rng.standard_normal((directions, 64)) if directions < 64 else np.eye(64)
    moments = {"h": moment_of((rng.standard_normal((rows, directions)) @ mix).astype(np.float32))}
    text = told(run_pass(QuantizeWeights(bits=4, least=1), layer(), PassContext(moments=moments)))
    assert text.count(f", {method}, ") == 2
    assert ("not gptq: 64 rows of inputs in about" in text) == (method == "search")
    forced = QuantizeWeights(bits=4, least=1, method="gptq")
    assert told(run_pass(forced, layer(), PassContext(moments=moments))).count(", gptq, ") == 2


@pytest.mark.parametrize("method", ["rtn", "search", "gptq"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_onnxruntime_multiplies_with_what_was_rounded(scheme: str, method: str) -> None:
    x = correlated(rows=40)
    program, moments = layer(), {"h": moment_of(np.maximum(x, 0))}
    step = QuantizeWeights(bits=4, least=1, scheme=scheme, method=method, block=128)
    run_pass(step, program, PassContext(moments=moments))
    after = evaluate(program.main, {"x": x})
    run_pass(UseBlockKernels(accuracy=1), program)
    assert_same(after, ort_run(program, {"x": x}), 1e-5)


def test_the_plan_is_followed_weight_by_weight() -> None:
    context = PassContext(
        moments={"h": moment_of(correlated())},
        plan={"quantize-weights": {"turned": "bits=8,block=16", "plain": "off"}},
    )
    result = run_pass(QuantizeWeights(bits=4, least=1), layer(), context)
    assert "turned: 32 x 64 in 8 bits, blocks of 16, symmetric, search" in told(result)
    assert "the budget keeps it" in reasons(result)


def test_a_block_gives_way_to_the_columns() -> None:
    x = correlated(columns=80)
    moments = {"h": moment_of(x)}
    result = run_pass(QuantizeWeights(bits=4, least=1), layer(80), PassContext(moments=moments))
    assert told(result).count("blocks of 16") == 2


@pytest.mark.slow
def test_onnxruntime_and_native_code_agree(tmp_path: Path) -> None:
    """Every scheme, in blocks of several sizes, with the codes and scales that gptq has found."""
    x = correlated(rows=40)
    plan = {
        f"{scheme} {bits} {block}": f"scheme={scheme},bits={bits},block={block}"
        for scheme in SCHEMES
        for bits, block in ((4, 16), (4, 64), (8, 32))
    }
    b = Builder()
    h = b.input("x", ("rows", 64))
    for index, name in enumerate(plan):
        w = b.weight(name, weight(16))
        b.output(b.op("Relu", b.op("Gemm", h, w, transB=1)), f"y{index}")
    program = b.program()
    context = PassContext(moments={"x": moment_of(x)}, plan={"quantize-weights": plan})
    result = run_pass(QuantizeWeights(least=1, method="gptq"), program, context)
    assert result.changed == len(plan) == told(result).count("gptq")
    wanted = evaluate(program.main, {"x": x})
    other = program.clone()
    run_pass(UseBlockKernels(accuracy=1), other)
    assert_same(wanted, ort_run(other, {"x": x}), 1e-5)
    native = native_programs.lowered(program)
    native_programs.build(native, tmp_path)
    errors = native_programs.errors(native, tmp_path, "main", {"x": x})
    assert max(errors.values()) < 0.02, errors  # activations of 8 bits
