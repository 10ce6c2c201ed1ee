"""linear-to-gemm and keep-layer-norm: the same numbers, fewer passes over memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.program import Dim, Program
from miaotui.passes.base import PassContext
from miaotui.passes.lowering.onnxruntime.linear import MARK, LinearToGemm
from miaotui.passes.lowering.onnxruntime.residual import KeepLayerNorm
from support.rewriting import check, operators, run_pass

RANDOM = np.random.default_rng(0)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(dtype)


def mlp(shape: tuple[Dim, ...] = ("batch", "seq", 6), dtype: Any = np.float32) -> Program:
    """Two linear layers with Gelu between them and a residual, as an encoder has."""
    b = Builder()
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    x = b.input("x", shape, kind)

    def weight(name: str, *sizes: int) -> ir.Value:
        tensor = ir.tensor(normal(*sizes, dtype=dtype), name=name)
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(sizes), const_value=tensor)
        b.graph.register_initializer(value)
        return value

    up = b.op("Add", b.op("MatMul", x, weight("w1", 6, 10)), weight("b1", 10))
    down = b.op(
        "Add",
        weight("b2", 6),
        b.op("MatMul", b.op("Tanh" if dtype == np.float64 else "Gelu", up), weight("w2", 10, 6)),
    )
    b.output(b.op("Add", down, x), "y")
    return b.program()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bias_moves_into_gemm(dtype: Any) -> None:
    program = mlp(dtype=dtype)
    feeds = [{"x": normal(*s, 6, dtype=dtype)} for s in ((1, 1), (1, 7), (3, 5), (0, 4))]
    check(LinearToGemm(), program, feeds)
    counts = operators(program)
    assert (counts["Gemm"], counts["MatMul"], counts["Add"]) == (2, 0, 1)
    assert counts["Reshape"] == 2, "rows stay rows between the two layers"


def test_one_varying_dimension_needs_no_shape_arithmetic() -> None:
    program = mlp(("batch", 5, 6))
    check(LinearToGemm(), program, [{"x": normal(n, 5, 6)} for n in (1, 3)])
    assert operators(program)["Shape"] == 0


def test_four_dimensions() -> None:
    check(LinearToGemm(), mlp(("batch", "h", "w", 6)), [{"x": normal(2, 3, 4, 6)}])


def test_layers_over_the_same_rows_share_views() -> None:
    b = Builder()
    x = b.input("x", ("batch", "seq", 6))
    for name in "qkv":
        product = b.op("MatMul", x, b.weight(f"w{name}", normal(6, 6)))
        b.output(b.op("Add", product, b.weight(f"b{name}", normal(6))), name)
    program = b.program()
    check(LinearToGemm(), program, [{"x": normal(2, 5, 6)}])
    counts = operators(program)
    assert (counts["Gemm"], counts["Shape"], counts["Concat"], counts["Reshape"]) == (3, 1, 1, 4)
    assert not any(MARK in node.metadata_props for node in program.main.graph)


def test_float16_is_left_to_the_matmul_kernel() -> None:
    assert run_pass(LinearToGemm(), mlp(dtype=np.float16)).changed == 0


@pytest.mark.parametrize("case", ["bias varies", "bias per token", "product read twice", "weight varies"])
def test_leaves_what_gemm_has_no_form_for(case: str) -> None:
    b = Builder()
    x = b.input("x", ("batch", 5, 6))
    w = b.input("w", (6, 6)) if case == "weight varies" else b.weight("w", normal(6, 6))
    bias = b.weight("b", normal(5, 6) if case == "bias per token" else normal(6))
    bias = b.input("bias", (6,)) if case == "bias varies" else bias
    product = b.op("MatMul", x, w)
    b.output(b.op("Add", product, bias), "y")
    if case == "product read twice":
        b.output(b.op("Neg", product), "z")
    assert run_pass(LinearToGemm(), b.program()).changed == 0


def residual(norm: str, dtype: Any = np.float32) -> Program:
    b = Builder()
    kind = ir.DataType.from_numpy(np.dtype(dtype))
    x, r = b.input("x", ("batch", "seq", 8), kind), b.input("r", ("batch", "seq", 8), kind)
    total = b.op("Add", x, r)
    scales = [
        b.weight(f"s{i}", normal(8, dtype=dtype)) for i in range(2 if norm == "LayerNormalization" else 1)
    ]
    b.output(b.op(norm, total, *scales, axis=-1), "y")
    b.output(b.op("Neg", total), "z")
    return b.program()


def test_residual_before_layer_norm_becomes_sum() -> None:
    program = residual("LayerNormalization")
    check(KeepLayerNorm(), program, [{"x": normal(2, 5, 8), "r": normal(2, 5, 8)}])
    assert operators(program)["Sum"] == 1


def test_residual_before_another_norm_stays() -> None:
    assert run_pass(KeepLayerNorm(), residual("RMSNormalization")).changed == 0


def test_residual_of_float16_stays() -> None:
    assert run_pass(KeepLayerNorm(), residual("LayerNormalization", np.float16)).changed == 0


def test_the_runtime_does_not_fuse_sum(tmp_path: Any) -> None:
    import onnxruntime

    program = residual("LayerNormalization")
    KeepLayerNorm().run(program, PassContext())
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    proto = ir.to_proto(program.main).SerializeToString()
    onnxruntime.InferenceSession(proto, settings, providers=["CPUExecutionProvider"])
    optimized = {node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph}
    assert "SkipLayerNormalization" not in optimized
