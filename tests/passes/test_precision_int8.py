"""quantize-activations: integer products against numpy, scales, layouts, what is declined and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.histograms import Histogram
from miaotui.passes.lowering.onnxruntime.integers import UseIntegerKernels
from miaotui.passes.moments import Moment
from miaotui.passes.precision.activations import QuantizeActivations
from miaotui.passes.precision.row_factors import row_factors
from support.numerics import histograms
from support.rewriting import Arrays, assert_same, operators, ort_run, reasons, run_pass

RNG = np.random.default_rng(5)
FORMS = ("matmul", "transposed", "gemm", "gemm_turned")


def linear(form: str = "matmul", rank: int = 3, before: str = "", bias: bool = True) -> Program:
    """x[..., 64] by a weight of 64 to 96, which is stored either way."""
    b = Builder()
    x = b.input("x", ("batch", "tokens", 64)[-rank:] if rank == 3 else ("batch", 64))
    read = b.op(before, x, name="read") if before else x
    weight = RNG.standard_normal((64, 96)) * np.exp(RNG.standard_normal(96))  # columns of different size
    shift = b.weight("b", RNG.standard_normal(96))
    if form == "matmul":
        y = b.op("MatMul", read, b.weight("w", weight))
    elif form == "transposed":
        y = b.op("MatMul", read, b.op("Transpose", b.weight("w", weight.T.copy()), perm=[1, 0]))
    elif form == "gemm":
        y = b.op("Gemm", read, b.weight("w", weight), *([shift] if bias else []))
    else:
        y = b.op("Gemm", read, b.weight("w", weight.T.copy()), *([shift] if bias else []), transB=1)
    if bias and "gemm" not in form:
        y = b.op("Add", y, shift)
    b.output(y, "y")
    return b.program()


def feed(*shape: int) -> Arrays:
    rows = np.exp(RNG.standard_normal((*shape, 1)))  # rows of different size too
    return {"x": (RNG.standard_normal((*shape, 64)) * rows).astype(np.float32)}


def rounded(array: np.ndarray[Any, Any], step: Any, zero: int) -> np.ndarray[Any, Any]:
    codes = np.clip(np.rint(array.astype(np.float64) / step) + zero, 0, 255)
    return np.asarray((codes - zero) * step)


def by_numpy(program: Program, case: Arrays, per: str, zero: int = 128) -> np.ndarray[Any, Any]:
    """The layer with x rounded by row or as a whole, the weight by output channel, in float64."""
    initializers = program.main.graph.initializers
    weight = initializers["w"].const_value
    shift = initializers["b"].const_value
    assert weight is not None and shift is not None
    w = weight.numpy().astype(np.float64)
    w = w if w.shape[0] == 64 else w.T
    step = (np.abs(w).max(0) / 127).astype(np.float16).astype(np.float64)  # what steps are stored in
    w = np.clip(np.rint(w / step), -128, 127) * step
    x = case["x"]
    if per == "row":
        high, low = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
        above = np.maximum(high, 0) / (255 - zero)
        scale = np.maximum(above, np.maximum(-low, 0) / zero if zero else 0)
    else:
        low, high = min(x.min(), 0), max(x.max(), 0)
        scale = (high - low) / 255
        zero = int(np.rint(-low / scale))
    return np.asarray(rounded(x, scale, zero) @ w + shift.numpy())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per", ["row", "tensor"])
def test_rounds_activations_and_channels_as_numpy_does(form: str, per: str) -> None:
    rank = 2 if "gemm" in form else 3
    program, case = linear(form, rank), feed(*((5,) if rank == 2 else (2, 5)))
    plain, wanted = evaluate(program.main, case)["y"], by_numpy(program, case, per)
    result = run_pass(QuantizeActivations(per=per, method="rtn"), program)
    assert result.changed == 1, reasons(result)
    got = evaluate(program.main, case)["y"]
    size = np.abs(wanted).max()
    assert np.abs(got - wanted).max() <= 1e-4 * size  # a tie may round the other way in float32
    assert 1e-4 * size < np.abs(plain - wanted).max() <= 3e-2 * size
    assert "w" not in program.main.graph.initializers


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("per", ["row", "tensor"])
def test_kernel_gives_what_the_standard_operators_give(form: str, per: str) -> None:
    rank = 2 if "gemm" in form else 3
    program = linear(form, rank)
    run_pass(QuantizeActivations(per=per), program)
    cases = [feed(*sizes[-(rank - 1) :]) for sizes in ((2, 5), (3, 1), (1, 17))]
    wanted = [evaluate(program.main, case) for case in cases]
    result = run_pass(UseIntegerKernels(), program)
    assert result.changed == 1, reasons(result)
    assert operators(program)["com.microsoft::MatMulIntegerToFloat"] == 1
    for case, expected in zip(cases, wanted, strict=True):
        assert_same(expected, evaluate(program.main, case), 1e-5)
        assert_same(expected, ort_run(program, case), 2e-3)  # one code more or less where a quotient ties


@pytest.mark.parametrize(
    ("before", "zero"), [("Relu", 0), ("Gelu", 24), ("Tanh", 128), ("Sigmoid", 0), ("Softmax", 0)]
)
def test_zero_point_follows_from_the_operator_before(before: str, zero: int) -> None:
    program, case = linear(before=before), feed(2, 6)
    read = evaluate(program.main, case, ["read"])["read"]
    wanted = by_numpy(program, {"x": read}, "row", zero)
    run_pass(QuantizeActivations(method="rtn"), program)
    assert_same({"y": wanted.astype(np.float32)}, evaluate(program.main, case), 1e-4)


def test_layers_that_read_one_activation_round_it_once() -> None:
    b = Builder()
    x = b.input("x", ("batch", "tokens", 64))
    for index in range(3):
        b.output(b.op("MatMul", x, b.weight(f"w{index}", RNG.standard_normal((64, 64)))), f"y{index}")
    program, case = b.program(), feed(2, 5)
    before = evaluate(program.main, case)
    run_pass(QuantizeActivations(), program)
    run_pass(UseIntegerKernels(), program)
    found = operators(program)
    assert found["QuantizeLinear"] == 1
    assert found["com.microsoft::MatMulIntegerToFloat"] == 3
    assert_same(before, ort_run(program, case), 3e-2)


@pytest.mark.parametrize("chosen", ["minmax", "percentile", "entropy"])
def test_static_scale_is_the_histogram_s(chosen: str) -> None:
    program, case = linear(), feed(4, 50)
    histogram = Histogram.of(case["x"])
    assert histogram is not None
    scale = histogram.scale(chosen, 99.0)
    initializers = program.main.graph.initializers
    w, shift = (initializers[n].const_value.numpy() for n in ("w", "b"))  # type: ignore[union-attr]
    step = (np.abs(w).max(0) / 127).astype(np.float16).astype(np.float64)
    wanted = rounded(case["x"], scale.step, scale.zero) @ (np.rint(w / step) * step) + shift
    context = PassContext(histograms=histograms(case))
    options = QuantizeActivations(mode="static", range=chosen, percentile=99.0, method="rtn")
    assert run_pass(options, program, context).changed == 1
    assert_same({"y": wanted.astype(np.float32)}, evaluate(program.main, case), 1e-3)
    run_pass(UseIntegerKernels(), program)
    assert operators(program)["Add"] == 0, "the bias rides on the product"
    assert_same({"y": wanted.astype(np.float32)}, ort_run(program, case), 2e-3)


def test_weights_lose_a_bit_where_pairs_of_products_saturate() -> None:
    program = linear()
    run_pass(QuantizeActivations(), program, PassContext(sums_bytes=False))
    codes = program.main.graph.initializers["w.data"].const_value
    assert codes is not None
    assert np.abs(codes.numpy().astype(int)).max() in (63, 64)
    assert 2 * 255 * 64 < 1 << 15, "the greatest pair of products fits into 16 bits"


def test_uneven_channels_are_evened_out_by_what_the_weights_take_back() -> None:
    program = linear()
    case = {"x": (RNG.standard_normal((4, 30, 64)) * np.exp(RNG.standard_normal(64) * 2)).astype(np.float32)}
    wanted, rows = evaluate(program.main, case)["y"], case["x"].reshape(-1, 64)
    moments = {"x": Moment(rows.T @ rows / len(rows), len(rows))}
    plain = program.clone()
    result = run_pass(QuantizeActivations(), program, PassContext(moments=moments))
    assert "channels evened out" in result.hits[0].text
    run_pass(QuantizeActivations(), plain)
    errors = [np.linalg.norm(evaluate(p.main, case)["y"] - wanted) for p in (program, plain)]
    assert errors[0] < 0.6 * errors[1]


def test_even_channels_are_left_as_they_are() -> None:
    weight = RNG.standard_normal((32, 64)).astype(np.float32)
    assert row_factors(np.ones(64, np.float32), [weight]) is None
    uneven = np.ones(64, np.float32)
    uneven[3] = 100
    factors = row_factors(uneven, [weight])
    assert factors is not None
    assert factors.argmax() == 3


def test_plan_and_keep_leave_weights_alone() -> None:
    program = linear()
    context = PassContext(plan={"quantize-activations": {"w": "off"}})
    assert "the budget keeps it" in reasons(run_pass(QuantizeActivations(), program, context))
    assert "is to be kept" in reasons(run_pass(QuantizeActivations(keep=("w",)), program))


def test_declines_name_the_reason() -> None:
    b = Builder()
    x = b.input("x", ("batch", 64))
    y = b.op("Gemm", x, b.weight("scaled", RNG.standard_normal((64, 64))), alpha=0.5)
    b.output(y, "y")
    assert "Gemm scales its result" in reasons(run_pass(QuantizeActivations(), b.program()))
    unmeasured = run_pass(QuantizeActivations(mode="static"), linear())
    assert "x was not measured: static scales need calibration data" in reasons(unmeasured)


def test_a_language_model_is_left_to_blocks() -> None:
    b = Builder()
    table = b.weight("table", RNG.standard_normal((1200, 64)))
    x = b.op("Gather", table, b.input("ids", ("batch", "tokens"), dtype=ir.DataType.INT64))
    h = b.op("MatMul", x, b.weight("w", RNG.standard_normal((64, 64))))
    b.output(b.op("MatMul", h, b.op("Transpose", table, perm=[1, 0])), "logits")
    program = b.program()
    assert "a language model's weights" in reasons(run_pass(QuantizeActivations(), program))
    assert run_pass(QuantizeActivations(mode="dynamic"), program).changed == 2


@pytest.mark.parametrize(
    "text", ["mode=fast", "range=mean", "per=column", "percentile=10", "bits=4", "method=x"]
)
def test_bad_options_are_named(text: str) -> None:
    with pytest.raises(OptionError):
        QuantizeActivations().with_options(text)
