"""The stored kernel registry answers as ONNX Runtime's own does."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.onnxruntime import kernels


def _value(dtype: ir.DataType) -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(dtype))


def _node(
    op: str, dtype: ir.DataType = ir.DataType.FLOAT, inputs: int = 1, domain: str = "", **attributes: object
) -> ir.Node:
    return ir.node(op, [_value(dtype) for _ in range(inputs)], attributes, domain=domain)  # type: ignore[arg-type]


def _model(*nodes: ir.Node, opset: int = 23) -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=nodes, opset_imports={"": opset}), ir_version=10)


@pytest.mark.parametrize(
    "op", ["MatMul", "Softmax", "Attention", "LayerNormalization", "RMSNormalization", "Gelu"]
)
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16])
def test_cuda_has_the_kernels_of_a_transformer(op: str, dtype: ir.DataType) -> None:
    assert kernels.find("CUDAExecutionProvider", _node(op, dtype, 3), 23) is None


@pytest.mark.parametrize(
    "op", ["GroupQueryAttention", "MultiHeadAttention", "SkipLayerNormalization", "MatMulNBits"]
)
def test_cuda_has_the_fused_kernels(op: str) -> None:
    assert kernels.find("CUDA", _node(op, ir.DataType.FLOAT16, domain="com.microsoft"), 1) is None


def test_reason_names_provider_operator_version_and_dtype() -> None:
    assert kernels.find("CUDA", _node("Acos"), 23) == "CUDA has no kernel for Acos-23"
    reason = kernels.find("CUDA", _node("MatMul", ir.DataType.INT32, 2), 23)
    assert reason == "CUDA has no kernel for MatMul-23 with int32 input 0, int32 input 1"
    assert kernels.find("CPU", _node("Foo", domain="my.own"), 1) == "CPU has no kernel for my.own.Foo-1"


def test_open_version_range_ends_at_the_next_schema() -> None:
    pool = _node("MaxPool", kernel_shape=[2, 2])
    assert kernels.find("CUDA", pool, 21) is None
    assert kernels.find("CUDA", pool, 22, exact=True) == "CUDA has no kernel for MaxPool-22"
    assert kernels.find("CUDA", pool, 22) is None, "it can be written as opset 21"
    assert kernels.find("CPU", pool, 22) is None


def test_unknown_dtypes_do_not_count_against_a_kernel() -> None:
    assert kernels.find("CUDA", ir.node("MatMul", [ir.Value(name="a"), None]), 23) is None


def test_operator_without_any_kernel_is_judged_by_its_function_body() -> None:
    assert kernels.find("CUDA", _node("GreaterOrEqual", ir.DataType.BFLOAT16, 2), 23) is None
    celu = kernels.find("CUDA", _node("Celu"), 23)
    assert celu is not None, "the CPU provider has Celu, so that ONNX Runtime does not expand it"


@pytest.mark.parametrize(
    ("op", "attributes", "declined"),
    [
        ("ArgMax", {"select_last_index": 1}, True),
        ("ArgMax", {}, False),
        ("ConvTranspose", {"pads": [0, 0, 1, 1]}, True),
        ("ConvTranspose", {"pads": [1, 1, 1, 1]}, False),
        ("ConvTranspose", {"auto_pad": "SAME_UPPER"}, True),
        ("GRU", {"hidden_size": 3}, True),
        ("GRU", {"hidden_size": 3, "linear_before_reset": 1}, False),
        ("LSTM", {"hidden_size": 3, "activations": ["Sigmoid", "Relu", "Tanh"]}, True),
        ("LSTM", {"hidden_size": 3, "clip": 1.0}, True),
        ("LSTM", {"hidden_size": 3}, False),
    ],
)
def test_cuda_declines_what_its_kernels_do_not_offer(
    op: str, attributes: dict[str, object], declined: bool
) -> None:
    assert (kernels.find("CUDA", _node(op, **attributes), 23) is not None) == declined


def test_emission_opset_keeps_pooling_on_the_gpu() -> None:
    cnn = _model(_node("Conv", inputs=2), _node("MaxPool", kernel_shape=[3, 3]), _node("Cast", to=10))
    assert kernels.emission_opset("CUDA", cnn) == 21
    assert kernels.emission_opset("CPU", cnn) == 23


def test_emission_opset_never_drops_an_operator_that_is_newer() -> None:
    assert kernels.emission_opset("CUDA", _model(_node("Attention", inputs=3))) == 23
    both = _model(_node("Attention", inputs=3), _node("MaxPool", kernel_shape=[3, 3]))
    assert kernels.emission_opset("CUDA", both) == 23


def test_stored_table_agrees_with_the_installed_cpu_registry() -> None:
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    if "CUDAExecutionProvider" in state.get_available_providers():
        pytest.skip("reading the registry of a GPU build can crash the process")
    installed = {
        (k.domain, k.op_name)
        for k in state.get_all_opkernel_def()
        if k.domain in ("", "ai.onnx.ml", "com.microsoft")
    }
    stored = {key for key, operator in kernels.table().items() if "CPU" in operator.kernels}
    assert len(installed & stored) >= 0.97 * len(installed | stored)
