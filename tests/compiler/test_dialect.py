"""The dialect against ONNX Runtime: the same schemas, the same numbers, the same shapes."""

# ruff: noqa: E501 - one case a line reads as a table
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler import dialect
from miaotui.compiler.errors import UnsupportedError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.verify import problems

ort = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def i32(*values: Any) -> np.ndarray:
    return np.asarray(values, np.int32)


@dataclass
class Case:
    op: str
    inputs: list[np.ndarray | None]
    outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = dialect.MICROSOFT
    skip: tuple[int, ...] = ()  # outputs ONNX Runtime's CPU kernel does not write

    def __str__(self) -> str:
        inputs = ",".join("-" if a is None else "x".join(map(str, a.shape)) or "scalar" for a in self.inputs)
        return f"{self.op}({inputs}){''.join(f' {k}={v}' for k, v in self.attributes.items())}"


CACHE = np.cos(f32(32, 4)), np.sin(f32(32, 4))
WIDE = np.cos(f32(32, 8)), np.sin(f32(32, 8))
HALF_CACHE = np.cos(f32(32, 2)), np.sin(f32(32, 2))
PAST = f32(2, 2, 3, 8), f32(2, 2, 3, 8)
CODES = RNG.integers(0, 256, (6, 2, 16)).astype(np.uint8)
GQA = {"num_heads": 4, "kv_num_heads": 2}

CASES = [
    Case("Gelu", [f32(3, 5)]),
    Case("BiasGelu", [f32(2, 3, 5), f32(5)]),
    Case("FastGelu", [f32(2, 3, 5)]),
    Case("FastGelu", [f32(2, 3, 5), f32(5)]),
    Case("QuickGelu", [f32(3, 5)], attributes={"alpha": 1.702}),
    Case("QuickGelu", [f32(3, 5)], attributes={"alpha": 1.0}),
    Case("SkipLayerNormalization", [f32(2, 3, 8), f32(2, 3, 8), f32(8), f32(8), f32(8)], 4, {"epsilon": 1e-5}, skip=(1, 2)),
    Case("SkipLayerNormalization", [f32(2, 3, 8), f32(1, 3, 8), f32(8)]),
    Case("SkipLayerNormalization", [f32(2, 3, 8), f32(3, 8), f32(8), f32(8)]),
    Case("SkipSimplifiedLayerNormalization", [f32(2, 3, 8), f32(2, 3, 8), f32(8)], 4, {"epsilon": 1e-6}, skip=(1, 2)),
    Case("SkipSimplifiedLayerNormalization", [f32(2, 3, 8), f32(2, 3, 8), f32(8), f32(8)]),
    Case("SimplifiedLayerNormalization", [f32(2, 3, 8), f32(8)], 2, {"epsilon": 1e-6}, domain=""),
    Case("SimplifiedLayerNormalization", [f32(2, 3, 8), f32(3, 8)], 1, {"axis": 1}, domain=""),
    Case("EmbedLayerNormalization", [i32([1, 2, 3], [4, 0, 1]), i32([0, 1, 1], [0, 0, 1]), f32(5, 8), f32(6, 8), f32(2, 8), f32(8), f32(8), i32([1, 1, 0], [1, 1, 1])], 3),
    Case("EmbedLayerNormalization", [i32([1, 2, 3], [4, 0, 1]), None, f32(5, 8), f32(6, 8), None, f32(8), f32(8)], 2),
    Case("FusedMatMul", [f32(2, 3, 4), f32(2, 5, 4)], attributes={"transB": 1, "alpha": 0.5}),
    Case("FusedMatMul", [f32(2, 4, 3), f32(4, 5)], attributes={"transA": 1}),
    Case("FusedMatMul", [f32(3, 2, 4), f32(2, 4, 5)], attributes={"transBatchA": 1}),
    Case("FusedMatMul", [f32(2, 1, 3, 4), f32(3, 4, 5)]),
    Case("FusedGemm", [f32(3, 4), f32(5, 4), f32(5)], attributes={"transB": 1, "alpha": 0.5, "beta": 2.0, "activation": "Relu"}),
    Case("FusedGemm", [f32(4, 3), f32(4, 5)], attributes={"transA": 1, "activation": "LeakyRelu", "activation_alpha": 0.1}),
    Case("FusedGemm", [f32(3, 4), f32(4, 5)], attributes={"activation": "HardSigmoid", "activation_alpha": 0.2, "activation_beta": 0.5}),
    Case("FusedConv", [f32(2, 4, 7, 8), f32(6, 4, 3, 3), f32(6)], attributes={"activation": "Relu", "pads": [1, 1, 1, 1], "strides": [2, 1]}),
    Case("FusedConv", [f32(2, 4, 7, 7), f32(6, 2, 3, 3)], attributes={"activation": "LeakyRelu", "activation_params": [0.1], "group": 2, "dilations": [2, 1]}),
    Case("FusedConv", [f32(2, 4, 7, 7), f32(6, 4, 3, 3), f32(6)], attributes={"activation": "Clip", "activation_params": [0.0, 6.0], "auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    Case("FusedConv", [f32(2, 4, 7, 7), f32(6, 4, 1, 1), f32(6), f32(2, 6, 7, 7)], attributes={"activation": "Relu"}),
    Case("FusedConv", [f32(2, 4, 9), f32(6, 4, 3)], attributes={"activation": "Tanh"}),
    Case("MatMulNBits", [f32(3, 64), CODES, f32(6, 2)], attributes={"K": 64, "N": 6, "bits": 4, "block_size": 32}),
    Case("MatMulNBits", [f32(2, 3, 64), CODES, f32(6, 2), RNG.integers(0, 256, (6, 1)).astype(np.uint8), None, f32(6)], attributes={"K": 64, "N": 6, "bits": 4, "block_size": 32}),
    Case("MatMulNBits", [f32(3, 64), RNG.integers(0, 256, (6, 2, 32)).astype(np.uint8), f32(6, 2)], attributes={"K": 64, "N": 6, "bits": 8, "block_size": 32}),
    Case("GatherBlockQuantized", [RNG.integers(0, 256, (7, 64)).astype(np.uint8), np.asarray([[0, 6, 2]]), f32(7, 2)], attributes={"bits": 8, "block_size": 32}),
    Case("GatherBlockQuantized", [RNG.integers(0, 256, (7, 32)).astype(np.uint8), np.asarray([[0, 6, 2]]), f32(7, 2), RNG.integers(0, 256, (7, 1)).astype(np.uint8)], attributes={"bits": 4, "block_size": 32}),
    Case("RotaryEmbedding", [f32(2, 3, 16), np.asarray([[0, 1, 2], [5, 6, 7]]), *CACHE]),
    Case("RotaryEmbedding", [f32(2, 3, 16), np.asarray([4]), *CACHE], attributes={"interleaved": 1}),
    Case("RotaryEmbedding", [f32(2, 2, 3, 8), np.asarray([[0, 1, 2], [5, 6, 7]]), *CACHE]),
    Case("RotaryEmbedding", [f32(2, 3, 16), np.asarray([0]), *HALF_CACHE], attributes={"num_heads": 2, "rotary_embedding_dim": 4}),
    Case("MultiHeadAttention", [f32(2, 3, 16), f32(2, 5, 16), f32(2, 5, 16)], attributes={"num_heads": 2}),
    Case("MultiHeadAttention", [f32(2, 3, 16), f32(2, 3, 16), f32(2, 3, 16), f32(48)], attributes={"num_heads": 2, "scale": 0.3}),
    Case("MultiHeadAttention", [f32(2, 3, 16), f32(2, 5, 16), f32(2, 5, 16), None, i32([1, 1, 1, 0, 0], [1, 1, 1, 1, 1])], attributes={"num_heads": 2}),
    Case("MultiHeadAttention", [f32(2, 3, 16), f32(2, 5, 16), f32(2, 5, 16), None, None, f32(1, 2, 3, 5)], attributes={"num_heads": 2}),
    Case("MultiHeadAttention", [f32(2, 3, 16), f32(2, 3, 16), f32(2, 3, 16), None, None, None, *PAST], 3, {"num_heads": 2, "unidirectional": 1}),
    Case("MultiHeadAttention", [f32(2, 3, 16), f32(2, 2, 5, 8), f32(2, 2, 5, 8)], attributes={"num_heads": 2}),
    Case("GroupQueryAttention", [f32(2, 3, 32), f32(2, 3, 16), f32(2, 3, 16), None, None, i32(2, 2), np.asarray(3, np.int32)], 3, GQA),
    Case("GroupQueryAttention", [f32(2, 3, 128), None, None, None, None, i32(2, 2), np.asarray(3, np.int32), *WIDE], 3, {**GQA, "do_rotary": 1, "scale": 0.2}),
    Case("GroupQueryAttention", [f32(2, 1, 128), None, None, f32(2, 2, 3, 16), f32(2, 2, 3, 16), i32(3, 3), np.asarray(4, np.int32), *WIDE], 3, {**GQA, "do_rotary": 1, "rotary_interleaved": 1}),
    Case("GroupQueryAttention", [f32(2, 3, 64), None, None, None, None, i32(2, 2), np.asarray(3, np.int32)], 3, {**GQA, "local_window_size": 2, "softcap": 3.0}),
    Case("GroupQueryAttention", [f32(2, 3, 64), None, None, None, None, i32(2, 2), np.asarray(3, np.int32), None, None, None, f32(1, 4, 3, 3)], 3, GQA),
    Case("GroupQueryAttention", [f32(2, 3, 64), None, None, None, None, i32(2, 2), np.asarray(3, np.int32)], 3, {**GQA, "smooth_softmax": 1}),
]  # fmt: skip


def model_of(case: Case) -> tuple[ir.Model, dict[str, np.ndarray]]:
    builder = Builder()
    feeds: dict[str, np.ndarray] = {}
    values: list[ir.Value | None] = []
    for index, array in enumerate(case.inputs):
        if array is None:
            values.append(None)
            continue
        name = f"x{index}"
        feeds[name] = array
        values.append(builder.input(name, array.shape, ir.DataType.from_numpy(array.dtype)))
    outputs = builder.ops(
        case.op, *values, outputs=case.outputs, domain=case.domain, name="y", **case.attributes
    )
    for index, value in enumerate(outputs):
        if index not in case.skip:
            value.type = ir.TensorType(
                next(v.dtype for v in values if v is not None and v.dtype.is_floating_point())
            )
            builder.output(value)
        else:
            value.name = ""
    return builder.model(infer=False), feeds


def run_ort(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_equals_onnxruntime(case: Case) -> None:
    model, feeds = model_of(case)
    if case.op == "EmbedLayerNormalization" and case.outputs > 1:
        model.graph.outputs[1].type = ir.TensorType(ir.DataType.INT32)
    expected = run_ort(model, feeds)
    actual = evaluate(model, feeds)
    for (name, array), reference in zip(actual.items(), expected, strict=True):
        assert array.dtype == reference.dtype, name
        np.testing.assert_allclose(array, reference, atol=2e-5, rtol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inference_agrees_with_what_runs(case: Case) -> None:
    model, feeds = model_of(case)
    node = model.graph[0]
    for value in node.outputs:
        value.type = None
    schema = dialect.schema(case.domain, case.op)
    assert schema is not None
    inferred = dict(zip([v.name for v in node.outputs], schema.infer(node), strict=False))
    for name, array in evaluate(model, feeds).items():
        dtype, shape = inferred[name]
        assert dtype is not None and dtype.numpy() == array.dtype, name
        assert shape is not None and len(shape) == array.ndim, name
        assert all(d == a for d, a in zip(shape, array.shape, strict=True) if isinstance(d, int)), name
        if "present" not in str(schema.outputs[[v.name for v in node.outputs].index(name)].name):
            assert all(isinstance(d, int) for d in shape), name


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases_are_well_formed(case: Case) -> None:
    model, _ = model_of(case)
    for value in model.graph[0].outputs:
        value.type = None
    assert problems(model) == []


def _ort_schemas() -> dict[tuple[str, str], Any]:
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    return {(s.domain, s.name): s for s in state.get_all_operator_schema()}


_THEIRS = [s for s in dialect.schemas() if s.domain == dialect.MICROSOFT]


@pytest.mark.parametrize("schema", _THEIRS, ids=lambda s: s.name)
def test_schema_equals_onnxruntimes(schema: dialect.OpSchema) -> None:
    theirs = _ort_schemas()[schema.domain, schema.name]
    assert (schema.min_inputs, len(schema.inputs)) == (theirs.min_input, theirs.max_input)
    assert (schema.min_outputs, len(schema.outputs)) == (theirs.min_output, theirs.max_output)
    for ours, formal in zip(
        (*schema.inputs, *schema.outputs), (*theirs.inputs, *theirs.outputs), strict=True
    ):
        assert (ours.name, ours.optional) == (formal.name, str(formal.option).endswith("Optional"))
    assert set(schema.attributes) == set(theirs.attributes)
    for name, attribute in schema.attributes.items():
        their = theirs.attributes[name]
        assert (attribute.kind.name, attribute.required) == (
            str(their.type).rpartition(".")[2],
            their.required,
        ), name


def test_what_a_reference_can_not_do_is_said() -> None:
    builder = Builder()
    x = builder.input("x", (1, 2, 8))
    y = builder.op("GroupQueryAttention", x, None, None, None, None, builder.weight("s", i32(1)),
                   builder.weight("t", i32(2)), domain=dialect.MICROSOFT, num_heads=1, kv_num_heads=1,
                   sliding_window_cache=1)  # fmt: skip
    builder.output(y, "y")
    with pytest.raises(UnsupportedError):
        evaluate(builder.model(), {"x": f32(1, 2, 8)})
