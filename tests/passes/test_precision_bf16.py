"""bfloat16 and float16: no NaN under adversarial ranges, what stays, weights stored on CPUs."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miaotui.compiler.codegen.onnxruntime import kernels
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.pipeline import pipeline
from miaotui.passes.precision import ConvertBf16, ConvertFp16, StoreWeights
from miaotui.passes.precision.half import BF16, half, loss
from miaotui.passes.precision.ranges import ranges_of
from support.rewriting import assert_same, operators, ort_run, reasons, run_pass

RNG = np.random.default_rng(2)
LOWEST = float(np.finfo(np.float32).min)
STEPS = {"fp16": ConvertFp16(), "bf16": ConvertBf16()}


def context(ranges: Any = None) -> PassContext:
    return PassContext(Target("cuda"), lambda node: kernels.find("CUDA", node), ranges)


def measured(program: Program, case: Any) -> dict[str, tuple[float, float]]:
    names = [str(v.name) for node in program.main.graph for v in node.outputs]
    return ranges_of({**case, **evaluate(program.main, case, names)})


def block(kind: str, length: int, scale: float) -> Program:
    """x[2, length] through what overflows or cancels in 16 bits."""
    b = Builder()
    x = b.input("x", (2, length))
    if kind == "masked softmax":
        mask = np.where(np.arange(length) % 3 == 0, LOWEST, 0).astype(np.float32)
        y = b.op("Softmax", b.op("Add", x, b.weight("mask", mask)), axis=-1)
    elif kind == "norm":
        y = b.op("RMSNormalization", x, b.weight("g", np.ones(length) * scale), axis=-1, epsilon=1e-6)
    elif kind == "variance":
        mean = b.op("ReduceMean", x, b.weight("a", np.array([-1])), keepdims=1)
        d = b.op("Sub", x, mean)
        var = b.op("ReduceMean", b.op("Mul", d, d), b.weight("a2", np.array([-1])), keepdims=1)
        y = b.op("Div", d, b.op("Sqrt", b.op("Add", var, b.weight("eps", np.array(1e-12)))))
    elif kind == "mean":
        y = b.op("ReduceMean", x, b.weight("a", np.array([-1])), keepdims=1)
    else:
        y = b.op("Relu", b.op("MatMul", x, b.weight("w", RNG.standard_normal((length, 4)) * scale)))
    b.output(y, "y")
    return b.program()


@pytest.mark.parametrize("kind", ["masked softmax", "norm", "variance", "mean", "product"])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
@settings(max_examples=12, deadline=None, derandomize=True, print_blob=True)
@given(
    decade=st.sampled_from([-8, -4, 0, 2, 4.8, 9, 18, 30, 38]),
    weight=st.sampled_from([-8, -2, 0, 4.8]),
    length=st.sampled_from([3, 300, 5000]),
    seed=st.integers(0, 9),
)
def test_never_a_nan_where_the_source_has_none(
    kind: str, name: str, decade: float, weight: float, length: int, seed: int
) -> None:
    program = block(kind, length, 10.0**weight)
    x = np.random.default_rng(seed).standard_normal((2, length)).clip(-3, 3) * 10.0**decade
    case = {"x": x.astype(np.float32)}
    wanted = evaluate(program.main, case)["y"]
    if not np.isfinite(wanted).all():
        return
    ranges = measured(program, case)
    run_pass(STEPS[name], program, context(ranges))
    assert np.isfinite(evaluate(program.main, case)["y"].astype(np.float32)).all()


def test_products_turn_and_the_interface_stays() -> None:
    program, case = block("product", 64, 0.1), {"x": RNG.standard_normal((2, 64)).astype(np.float32)}
    wanted = evaluate(program.main, case)
    result = run_pass(ConvertBf16(), program, context(measured(program, case)))
    assert {note.text for note in result.hits} == {"MatMul computes in bfloat16", "Relu computes in bfloat16"}
    assert [v.dtype for v in (*program.main.graph.inputs, *program.main.graph.outputs)] == [
        ir.DataType.FLOAT, ir.DataType.FLOAT,
    ]  # fmt: skip
    assert_same(wanted, evaluate(program.main, case), 2e-2)


def test_range_that_float16_lacks_is_no_reason_for_bfloat16() -> None:
    case = {"x": np.full((2, 64), 1e6, np.float32)}
    for name, changed in (("fp16", 0), ("bf16", 2)):
        program = block("product", 64, 1.0)
        assert run_pass(STEPS[name], program, context(measured(program, case))).changed == changed


@pytest.mark.parametrize("kind", ["masked softmax", "mean"])
def test_what_loses_too_much_in_8_bits_is_named(kind: str) -> None:
    program = block(kind, 64, 1.0)
    assert "needs more than the 8 bits of a bfloat16" in reasons(run_pass(ConvertBf16(), program, context()))


def test_long_sums_are_named() -> None:
    program, case = block("mean", 5000, 1.0), {"x": np.full((2, 5000), 100, np.float32)}
    result = run_pass(ConvertFp16(), program, context(measured(program, case)))
    assert "its sums may reach 5e+05, float16 ends at 65504" in reasons(result)


def test_integers_above_256_are_none_in_bfloat16() -> None:
    tensor = ir.tensor(np.arange(250, 300, dtype=np.float32), name="positions")
    assert "holds the integer 257" in loss(tensor, saturate=False, divides=False, form=BF16)
    assert not loss(tensor, saturate=False, divides=False)


def test_the_lowest_float32_does_not_become_infinite() -> None:
    lazy = half(ir.tensor(np.array([LOWEST, 1.0], np.float32)), "m", form=BF16)
    array = lazy.numpy().astype(np.float32)
    assert np.isfinite(array).all() and np.isfinite(array.astype(np.float64) * 2 + 1e30).all()


@pytest.mark.parametrize(("name", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_cpu_stores_weights_and_computes_in_float32(name: str, dtype: Any) -> None:
    program, case = block("product", 512, 0.1), {"x": RNG.standard_normal((2, 512)).astype(np.float32)}
    weight = program.main.graph.initializers["w"].const_value
    assert weight is not None
    wanted = np.maximum(case["x"] @ weight.numpy().astype(dtype).astype(np.float32), 0)
    result = run_pass(StoreWeights(name), program)
    assert operators(program)["Cast"] == 1
    assert "all is computed in float32" in reasons(result)
    for step in CLEANUP:  # which would make a float32 of it again
        step.run(program, PassContext())
    assert_same({"y": wanted}, ort_run(program, case), 1e-5)
    found = program.main.graph.initializers[f"w.{name}"].const_value
    assert found is not None and found.nbytes == weight.nbytes // 2


def test_weights_out_of_range_stay_float32() -> None:
    program = block("product", 512, 1e6)
    assert "float16 ends at 65504" in reasons(run_pass(StoreWeights("fp16"), program))
    assert run_pass(StoreWeights("bf16"), block("product", 512, 1e6)).changed == 1
    with pytest.raises(OptionError, match="not offered"):
        StoreWeights("fp8")


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_each_target_gets_what_it_has_kernels_for(name: str) -> None:
    def names(**options: Any) -> list[str]:
        return [step.name for step in pipeline(CompileOptions(precision=name, **options))]  # type: ignore[arg-type]

    assert f"convert-{name}" in names(target=Target("cuda")) and "store-weights" not in names(
        target=Target("cuda")
    )
    assert f"convert-{name}" not in names(backend="ort") and names(backend="ort").count("store-weights") == 1
    steps = pipeline(CompileOptions(precision=name, backend="native"))  # type: ignore[arg-type]
    assert [s.dtype for s in steps if s.name == "native-weights"][-1] == name  # type: ignore[attr-defined]
