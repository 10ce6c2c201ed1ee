"""smooth-activations: the same result, channels evened out, weights still shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.lowering.onnxruntime.blocked import UseBlockKernels
from miaotui.passes.moments import Moment
from miaotui.passes.observers import run_pipeline
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


def moment(activations: Any) -> Moment:
    rows = activations.reshape(-1, activations.shape[-1])
    return Moment(rows.T @ rows / len(rows), len(rows))


def context(program: Program, case: Arrays) -> PassContext:
    return PassContext(moments={"h": moment(evaluate(program.main, case, ["h"])["h"])})


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


def decoder_layer(bias: bool) -> Program:
    """Four query heads on two heads of keys and values, and a gated pair of layers."""
    b = Builder()
    x = b.input("x", ("batch", "tokens", 32))

    def heads(name: str, count: int) -> Any:
        y = b.op("MatMul", x, b.weight(f"{name}.weight", RNG.standard_normal((32, count * 8)) / 6))
        if bias:
            y = b.op("Add", y, b.weight(f"{name}.bias", RNG.standard_normal(count * 8)))
        cut = b.op("Reshape", y, b.weight(f"{name}.shape", np.array([0, 0, count, 8])))
        return b.op("Transpose", cut, perm=[0, 2, 1, 3])

    mixed = b.op("Attention", heads("q", 4), heads("k", 2), heads("v", 2), is_causal=1)
    turned = b.op("Transpose", mixed, perm=[0, 2, 1, 3])
    joined = b.op("Reshape", turned, b.weight("joined.shape", np.array([0, 0, 32])), name="joined")
    o = b.op("MatMul", joined, b.weight("o.weight", RNG.standard_normal((32, 32)) / 6))
    gate = b.op("Sigmoid", b.op("MatMul", o, b.weight("gate.weight", RNG.standard_normal((32, 64)) / 6)))
    if bias:
        up = b.op(
            "Gemm",
            b.op("Reshape", o, b.weight("flat", np.array([-1, 32]))),
            b.weight("up.weight", RNG.standard_normal((64, 32)) / 8),
            b.weight("up.bias", RNG.random(64)),
            transB=1,
        )
        gate = b.op("Reshape", gate, b.weight("flat.up", np.array([-1, 64])))
    else:
        up = b.op("MatMul", o, b.weight("up.weight", RNG.standard_normal((32, 64)) / 6 * SIZES))
    gated = b.op("Mul", gate, up, name="gated")
    b.output(
        b.op("Relu", b.op("MatMul", gated, b.weight("down.weight", RNG.standard_normal((64, 32)) / 8))), "y"
    )
    return b.program()


@pytest.mark.parametrize("alpha", ["auto", "0.5", "1"])
@pytest.mark.parametrize("bias", [False, True])
def test_goes_through_gates_and_attention(bias: bool, alpha: str) -> None:
    program = decoder_layer(bias)
    case = {"x": RNG.standard_normal((2, 6, 32)).astype(np.float32) * np.float32(2)}
    wanted = evaluate(program.main, case)
    names = ["joined", "gated"]
    found = evaluate(program.main, case, names)
    moments = {n: moment(found[n]) for n in names}
    moments["joined"].matrix[:, 3] *= 30  # the alternatives differ: one channel is large
    moments["joined"].matrix[3] *= 30
    result = run_pass(SmoothActivations(bits=4, alpha=alpha), program, PassContext(moments=moments))
    assert result.changed == 2, reasons(result)
    assert {n.text.split(":")[0] for n in result.hits} == {"through a gate", "through attention"}
    assert_same(wanted, evaluate(program.main, case), 2e-5)
    after = evaluate(program.main, case, names)
    factors = {n: np.median(np.abs(found[n] / after[n]).reshape(-1, found[n].shape[-1]), 0) for n in names}
    for name, factor in factors.items():
        assert factor.max() > 1.2 * factor.min()
        told = result.moments[name].matrix * np.outer(factor, factor)
        np.testing.assert_allclose(told, moments[name].matrix, rtol=1e-2, atol=1e-5)
    heads = factors["joined"].reshape(2, 2, 8)
    np.testing.assert_allclose(heads[:, 0], heads[:, 1], rtol=1e-4)  # two of queries share one of values


def test_channels_that_are_always_zero_stay() -> None:
    program, case = layer(), feed()
    before = context(program, case)
    assert before.moments is not None
    matrix = before.moments["h"].matrix.copy()
    matrix[:9], matrix[:, :9] = 0, 0
    wanted = evaluate(program.main, case)
    run_pass(SmoothActivations(alpha="0.7"), program, PassContext(moments={"h": Moment(matrix, 10)}))
    assert_same(wanted, evaluate(program.main, case), 1e-5)
    scale = next(v for n, v in program.main.graph.initializers.items() if n.startswith("scale"))
    assert scale.const_value is not None
    np.testing.assert_allclose(scale.const_value.numpy()[:9], SIZES[:9], rtol=1e-6)


def test_weights_of_four_bits_lose_less_where_channels_differ() -> None:
    case, errors = feed(), []
    for smooth in (False, True):
        program = layer()
        wanted, known = evaluate(program.main, case)["y"], context(program, case)
        steps = [QuantizeWeights(bits=4, output=4, method="rtn", least=1)]
        results = run_pipeline(program, [SmoothActivations(bits=4), *steps] if smooth else steps, known)
        shares = [float(note.text.rpartition(" ")[2]) for note in results[-1][1].hits]
        errors.append([float(np.abs(evaluate(program.main, case)["y"] - wanted).max()), *shares])
    assert all(after < 0.7 * before for before, after in zip(*errors, strict=True)), errors


def test_refuses_exponents_that_are_none() -> None:
    for options in ("alpha=2", "alpha=much", "bits=3"):
        with pytest.raises(OptionError):
            SmoothActivations().with_options(options)


def test_leaves_what_was_not_measured() -> None:
    result = run_pass(SmoothActivations(), layer())
    assert not result.changed
    assert not result.declined
