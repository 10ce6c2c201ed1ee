"""smooth-activations: the same result, channels evened out, weights still shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.lowering.onnxruntime.blocked import UseBlockKernels
from miaotui.passes.moments import Moment
from miaotui.passes.precision.smoothing import SmoothActivations
from miaotui.passes.precision.weights import QuantizeWeights
from support.rewriting import Arrays, assert_same, ort_run, reasons, run_pass

RNG = np.random.default_rng(11)
SIZES = np.exp(RNG.standard_normal(64) * 2)  # channels of very different size


def layer(norm: str = "RMSNormalization", tied: bool = False, other: str = "") -> Program:
    b = Builder()
    x = b.input("x", ("batch", "tokens", 64))
    scales = [b.weight("scale", SIZES)] + ([b.weight("bias", RNG.random(64))] if norm[0] == "L" else [])
    h = b.op(norm, x, *scales, axis=-1, name="h")
    plain = b.weight("plain", RNG.standard_normal((8, 64)))
    y = b.op("MatMul", h, b.weight("turned", RNG.standard_normal((64, 8))))
    z = b.op("MatMul", h, b.op("Transpose", plain, perm=[1, 0]))
    b.output(b.op("Add", y, z), "y")
    if tied:
        b.output(b.op("ReduceSum", plain, b.weight("all", np.array([0, 1])), keepdims=0), "sum")
    if other:
        b.output(b.op(other, h), "other")
    return b.program()


def feed() -> Arrays:
    return {"x": RNG.standard_normal((2, 5, 64)).astype(np.float32)}


def context(program: Program, case: Arrays) -> PassContext:
    h = evaluate(program.main, case, ["h"])["h"]
    rows = h.reshape(-1, h.shape[-1])
    return PassContext(moments={"h": Moment(rows.T @ rows / len(rows), len(rows))})


@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
def test_gives_the_same_result(norm: str) -> None:
    program, case = layer(norm), feed()
    wanted = evaluate(program.main, case)
    before = context(program, case)
    result = run_pass(SmoothActivations(), program, before)
    assert result.changed == 1, reasons(result)
    assert_same(wanted, evaluate(program.main, case), 1e-5)
    sizes = [c.moments["h"].channels for c in (before, context(program, case)) if c.moments]
    spread = [size.max() / size.min() for size in sizes]
    assert spread[1] < spread[0] ** 0.6


def test_eight_bit_products_lose_less() -> None:
    case, errors = feed(), []
    for smooth in (False, True):
        program = layer()
        wanted = evaluate(program.main, case)["y"]
        if smooth:
            SmoothActivations().run(program, context(program, case))
        for step in (QuantizeWeights(least=1), UseBlockKernels()):
            step.run(program, PassContext())
        errors.append(float(np.abs(ort_run(program, case)["y"] - wanted).max()))
    assert errors[1] < 0.7 * errors[0]


def test_entries_keep_sharing_their_weights() -> None:
    program = layer()
    program.entries["decode"] = program.main.clone()
    SmoothActivations().run(program, context(program, feed()))
    first, second = (
        {n: v.const_value for n, v in m.graph.initializers.items()} for m in program.entries.values()
    )
    assert all(first[name] is second[name] for name in ("turned", "plain"))


@pytest.mark.parametrize(
    ("options", "why"),
    [({"tied": True}, "plain is read elsewhere too"), ({"other": "Relu"}, "Relu reads it too")],
)
def test_declines_what_others_read(options: dict[str, Any], why: str) -> None:
    program = layer(**options)
    assert why in reasons(run_pass(SmoothActivations(), program, context(program, feed())))


def test_leaves_what_was_not_measured() -> None:
    result = run_pass(SmoothActivations(), layer())
    assert not result.changed
    assert not result.declined
