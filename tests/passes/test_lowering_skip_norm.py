"""fuse-skip-norm: residual, bias and norm in one kernel, equal in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.program import Dim, Program
from miaotui.passes.lowering.onnxruntime import LOWER_CPU, FuseSkipNorm
from support.rewriting import check, operators, reasons, run_pass

RANDOM = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(dtype)


def weight(b: Builder, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    b.graph.register_initializer(value)
    return value


def block(
    norm: str,
    *,
    bias: bool = False,
    sum_read: bool = False,
    dtype: Any = np.float32,
    skip_shape: tuple[Dim, ...] = ("batch", "seq", 8),
    affine: int | None = None,
    **kw: Any,
) -> Program:
    b = Builder()
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    x, skip = b.input("x", ("batch", "seq", 8), kind), b.input("skip", skip_shape, kind)
    data = b.op("Add", x, weight(b, "bias", normal(8, dtype=dtype))) if bias else x
    total = b.op("Add", skip, data, name="total")
    if sum_read:
        b.output(b.op("Neg", total), "branch")
    count = (2 if norm == "LayerNormalization" else 1) if affine is None else affine
    scales = [weight(b, f"scale_{i}", normal(8, dtype=dtype)) for i in range(count)]
    b.output(b.op(norm, total, *scales, **kw), "y")
    return b.program()


def feeds(dtype: Any = np.float32) -> list[dict[str, np.ndarray[Any, Any]]]:
    return [{n: normal(*s, 8, dtype=dtype) for n in ("x", "skip")} for s in ((1, 1), (1, 6), (3, 5))]


@pytest.mark.parametrize("norm", ["LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sum_read", [False, True])
def test_residual_and_norm_become_one(norm: str, bias: bool, sum_read: bool) -> None:
    program = block(norm, bias=bias, sum_read=sum_read, epsilon=1e-3)
    check(FuseSkipNorm(), program, feeds())
    counts = operators(program)
    assert counts["Add"] == 0 and counts[norm] == 0


def test_layer_norm_without_bias() -> None:
    check(FuseSkipNorm(), block("LayerNormalization", bias=True, affine=1), feeds())


def test_float16() -> None:
    check(FuseSkipNorm(), block("RMSNormalization", dtype=np.float16, sum_read=True), feeds(np.float16), 1e-2)


def test_the_sum_keeps_its_name() -> None:
    program = block("RMSNormalization", sum_read=True)
    run_pass(FuseSkipNorm(), program)
    assert any(v.name == "total" for node in program.main.graph for v in node.outputs)


@pytest.mark.parametrize(
    ("kw", "reason"),
    [
        ({"skip_shape": (1, "seq", 8)}, "same shape"),
        ({"skip_shape": (None, "seq", 8)}, "same shape"),
        ({"skip_shape": (8,)}, "shapes"),
        ({"dtype": np.float64}, "no kernel for"),
    ],
)
def test_declines(kw: dict[str, Any], reason: str) -> None:
    assert reason in reasons(run_pass(FuseSkipNorm(), block("LayerNormalization", **kw)))


def test_declines_a_norm_over_two_axes() -> None:
    b = Builder()
    x, skip = b.input("x", ("batch", 4, 8)), b.input("skip", ("batch", 4, 8))
    b.output(b.op("LayerNormalization", b.op("Add", x, skip), weight(b, "s", normal(4, 8)), axis=1), "y")
    assert "more than the last axis" in reasons(run_pass(FuseSkipNorm(), b.program()))


def test_declines_when_the_mean_is_read() -> None:
    b = Builder()
    x, skip = b.input("x", ("batch", 4, 8)), b.input("skip", ("batch", 4, 8))
    outputs = b.ops("LayerNormalization", b.op("Add", x, skip), weight(b, "s", normal(8)), outputs=2, axis=-1)
    b.output(outputs[0], "y")
    b.output(outputs[1], "mean")
    assert "mean or deviation" in reasons(run_pass(FuseSkipNorm(), b.program()))


def test_cpu_does_without_it() -> None:
    assert FuseSkipNorm.name not in {step.name for step in LOWER_CPU}
