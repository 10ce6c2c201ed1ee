"""Weights so small that float16 has no scale for them: as precise as others, in every format and store."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.native.pack.blocked import pack_blocked
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.passes.lowering.onnxruntime.blocked import UseBlockKernels
from miaotui.passes.moments import Moment
from miaotui.passes.precision.blocks import rounded_weight
from miaotui.passes.precision.grids import SCHEMES, Rounding
from miaotui.passes.precision.stored import StoreWeights
from miaotui.passes.precision.weights import METHODS, QuantizeWeights
from support.rewriting import ort_run, run_pass

WEIGHT = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
INPUTS = np.random.default_rng(1).standard_normal((256, 64)).astype(np.float32)
SIZES = (1e-5, 1e-8, 1e-13, 1e-17)


def relative(made: Any, wanted: Any) -> float:
    a, b = np.asarray(made, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("method", METHODS)
def test_they_lose_as_little_as_large_ones(method: str, scheme: str, size: float) -> None:
    moment = Moment(INPUTS.T @ INPUTS / len(INPUTS), len(INPUTS))
    errors = []
    for factor in (1.0, size):
        tensor = ir.tensor(WEIGHT * np.float32(factor))
        made = rounded_weight(tensor, False, Rounding(4, 32, scheme, method), lambda: moment)
        errors.append(relative(made.weight.numpy(), tensor.numpy()))
    assert errors[1] < 1.1 * errors[0] < 0.2


@pytest.mark.parametrize("size", SIZES)
def test_onnxruntime_and_native_code_store_their_scales_whole(size: float) -> None:
    b = Builder()
    b.output(b.op("MatMul", b.input("x", ("rows", 64)), b.weight("w", WEIGHT.T * np.float32(size))), "y")
    program = b.program()
    run_pass(QuantizeWeights(bits=4, least=1), program)
    wanted = evaluate(program.main, {"x": INPUTS})["y"]
    run_pass(UseBlockKernels(accuracy=1), program)
    assert relative(ort_run(program, {"x": INPUTS})["y"], wanted) < 1e-3
    made = rounded_weight(ir.tensor(WEIGHT * np.float32(size)), False, Rounding(4, 32, "symmetric"))
    packed = b"".join(chunk.tobytes() for chunk in pack_blocked(made.weight).chunks())
    assert all(scale.tobytes() in packed for scale in made.weight.scale.numpy().ravel())


@pytest.mark.parametrize(("size", "stored"), [(1e-3, True), (1e-8, False), (1e-13, False)])
def test_sixteen_bits_are_declined_where_they_lose_them(size: float, stored: bool) -> None:
    b = Builder()
    b.output(b.op("MatMul", b.input("x", ("rows", 64)), b.weight("w", WEIGHT.T * np.float32(size))), "y")
    program = b.program()
    result = run_pass(StoreWeights(least=1), program)
    assert bool(result.changed) == stored
    assert stored or "would lose" in result.declined[0].text
