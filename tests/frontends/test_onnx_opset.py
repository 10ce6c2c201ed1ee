"""Raising old opsets: every adapter's result equals what the original computes under ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from miaotui.compiler.ir.verify import problems
from miaotui.compiler.program import OPSET
from miaotui.frontends.onnx import import_onnx, program_from_model
from miaotui.frontends.onnx.opset import STUCK
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    opset: int,
    constants: dict[str, np.ndarray] | None = None,
    output: int = TensorProto.FLOAT,
    ranks: bool = True,
    functions: Any = (),
) -> onnx.ModelProto:
    def info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape if ranks else None
        )

    graph = helper.make_graph(
        nodes,
        "g",
        [info(name, array) for name, array in inputs.items()],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    if functions:
        imports.append(helper.make_opsetid("f", 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)


def run(proto: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options).run(None, inputs)


def raised(proto: onnx.ModelProto) -> ir.Model:
    program = program_from_model(ir.from_proto(onnx.ModelProto.FromString(proto.SerializeToString())))
    assert "kept opset" not in program.source.get("opset_note", "")
    stuck = STUCK & {n.op_type for n in program.main.graph.all_nodes()}
    assert program.main.opset_imports[""] == (21 if stuck else OPSET)
    assert problems(program.main) == []
    return program.main


node = helper.make_node
X = f32(2, 3, 4, 5)
SQUARE = f32(1, 2, 4, 4)

CASES: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], int, dict[str, np.ndarray]]] = {
    "softmax_default_axis": ([node("Softmax", ["x"], ["y"])], {"x": X}, 11, {}),
    "softmax_axis_0": ([node("Softmax", ["x"], ["y"], axis=0)], {"x": X}, 9, {}),
    "softmax_last": ([node("Softmax", ["x"], ["y"], axis=3)], {"x": X}, 7, {}),
    "softmax_minus_2": ([node("Softmax", ["x"], ["y"], axis=-2)], {"x": X}, 11, {}),
    "log_softmax": ([node("LogSoftmax", ["x"], ["y"], axis=2)], {"x": X}, 11, {}),
    "hardmax": ([node("Hardmax", ["x"], ["y"], axis=2)], {"x": X}, 11, {}),
    "clip": ([node("Clip", ["x"], ["y"], min=-0.5, max=0.25)], {"x": X}, 10, {}),
    "clip_min_only": ([node("Clip", ["x"], ["y"], min=-0.5)], {"x": X}, 6, {}),
    "clip_none": ([node("Clip", ["x"], ["y"])], {"x": X}, 10, {}),
    "pad_value": ([node("Pad", ["x"], ["y"], pads=[0, 0, 1, 2, 0, 0, 0, 1], value=3.0)], {"x": X}, 10, {}),
    "pad_reflect": (
        [node("Pad", ["x"], ["y"], pads=[0, 0, 1, 2, 0, 0, 0, 1], mode="reflect")],
        {"x": X},
        7,
        {},
    ),
    "slice": ([node("Slice", ["x"], ["y"], starts=[1, 0], ends=[3, -1], axes=[2, 3])], {"x": X}, 9, {}),
    "slice_no_axes": ([node("Slice", ["x"], ["y"], starts=[0, 1], ends=[1, 99])], {"x": X}, 7, {}),
    "top_k": ([node("TopK", ["x"], ["y", "i"], k=2, axis=1)], {"x": X}, 9, {}),
    "squeeze": ([node("Squeeze", ["x"], ["y"], axes=[1])], {"x": f32(2, 1, 3, 1)}, 11, {}),
    "squeeze_all": ([node("Squeeze", ["x"], ["y"])], {"x": f32(2, 1, 3, 1)}, 11, {}),
    "unsqueeze": ([node("Unsqueeze", ["x"], ["y"], axes=[0, 3])], {"x": f32(2, 3)}, 11, {}),
    "split_equal": ([node("Split", ["x"], ["y", "b"], axis=2)], {"x": X}, 11, {}),
    "split_sizes": ([node("Split", ["x"], ["y", "b"], axis=2, split=[1, 3])], {"x": X}, 11, {}),
    "split_equal_17": ([node("Split", ["x"], ["y", "b"], axis=2)], {"x": X}, 17, {}),
    "reduce_sum": ([node("ReduceSum", ["x"], ["y"], axes=[1, -1], keepdims=0)], {"x": X}, 11, {}),
    "reduce_sum_all": ([node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": X}, 11, {}),
    "scatter": (
        [node("Scatter", ["x", "i", "u"], ["y"], axis=1)],
        {"x": f32(3, 4)},
        9,
        {"i": np.array([[1, 0], [3, 2], [0, 1]]), "u": f32(3, 2)},
    ),
    "dropout": ([node("Dropout", ["x"], ["y"], ratio=0.3)], {"x": X}, 10, {}),
    "dropout_7": ([node("Dropout", ["x"], ["y", "mask"], ratio=0.3)], {"x": X}, 7, {}),
    "upsample_nearest_9": (
        [node("Upsample", ["x", "s"], ["y"])],
        {"x": SQUARE},
        9,
        {"s": np.array([1, 1, 2, 3], "f")},
    ),
    "upsample_linear_7": (
        [node("Upsample", ["x"], ["y"], mode="linear", scales=[1.0, 1.0, 2.0, 2.0])],
        {"x": SQUARE},
        7,
        {},
    ),
    "upsample_fraction": (
        [node("Upsample", ["x", "s"], ["y"])],
        {"x": SQUARE},
        9,
        {"s": np.array([1, 1, 1.5, 1.7], "f")},
    ),
    "resize_10_up": (
        [node("Resize", ["x", "s"], ["y"])],
        {"x": SQUARE},
        10,
        {"s": np.array([1, 1, 1.5, 2], "f")},
    ),
    "resize_10_down": (
        [node("Resize", ["x", "s"], ["y"])],
        {"x": SQUARE},
        10,
        {"s": np.array([1, 1, 0.6, 0.5], "f")},
    ),
    "resize_10_linear": (
        [node("Resize", ["x", "s"], ["y"], mode="linear")],
        {"x": SQUARE},
        10,
        {"s": np.array([1, 1, 0.6, 1.5], "f")},
    ),
    "resize_11_sizes": (
        [
            node(
                "Resize",
                ["x", "r", "s", "z"],
                ["y"],
                mode="linear",
                coordinate_transformation_mode="align_corners",
            )
        ],
        {"x": SQUARE},
        11,
        {"r": np.zeros(0, "f"), "s": np.zeros(0, "f"), "z": np.array([1, 2, 7, 3])},
    ),
    "resize_11_half_pixel": (
        [node("Resize", ["x", "r", "s"], ["y"], nearest_mode="ceil")],
        {"x": SQUARE},
        11,
        {"r": np.zeros(0, "f"), "s": np.array([1, 1, 0.6, 1.5], "f")},
    ),
    "roi_align": (
        [node("RoiAlign", ["x", "r", "b"], ["y"], output_height=2, output_width=2, spatial_scale=1.0)],
        {"x": SQUARE},
        10,
        {"r": np.array([[0.4, 0.3, 3.1, 2.7]], "f"), "b": np.array([0])},
    ),
    "grid_sample": (
        [node("GridSample", ["x", "g"], ["y"], mode="bicubic")],
        {"x": SQUARE},
        16,
        {"g": f32(1, 3, 3, 2) / 2},
    ),
    "grid_sample_default": (
        [node("GridSample", ["x", "g"], ["y"])],
        {"x": SQUARE},
        16,
        {"g": f32(1, 3, 3, 2) / 2},
    ),
    "dft": ([node("DFT", ["x"], ["y"])], {"x": f32(1, 8, 3, 1)}, 17, {}),
    "batch_norm": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])],
        {"x": X},
        9,
        {"s": f32(3), "b": f32(3), "m": f32(3), "v": np.abs(f32(3)) + 1},
    ),
    "batch_norm_per_activation": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], spatial=0)],
        {"x": X},
        7,
        {"s": f32(3, 4, 5), "b": f32(3, 4, 5), "m": f32(3, 4, 5), "v": np.abs(f32(3, 4, 5)) + 1},
    ),
    "mvn": ([node("MeanVarianceNormalization", ["x"], ["y"])], {"x": X}, 9, {}),
    "cast": (
        [node("Cast", ["x"], ["h"], to=TensorProto.INT64), node("Cast", ["h"], ["y"], to=1)],
        {"x": 9 * X},
        7,
        {},
    ),
    "gemm_7": (
        [node("Gemm", ["x", "b", "c"], ["y"], transB=1)],
        {"x": f32(2, 3)},
        7,
        {"b": f32(4, 3), "c": f32(4)},
    ),
    "loop_body_is_raised": (
        [
            node(
                "Loop",
                ["n", "", "x"],
                ["y"],
                body=helper.make_graph(
                    [
                        node("Softmax", ["a"], ["b"], axis=0),
                        node("Unsqueeze", ["b"], ["u"], axes=[0]),
                        node("ReduceSum", ["u"], ["o"], axes=[0], keepdims=0),
                        node("Identity", ["c"], ["d"]),
                    ],
                    "body",
                    [
                        helper.make_tensor_value_info("i", TensorProto.INT64, []),
                        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                        helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 3]),
                    ],
                    [
                        helper.make_tensor_value_info("d", TensorProto.BOOL, []),
                        helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 3]),
                    ],
                ),
            )
        ],
        {"x": f32(2, 3)},
        11,
        {"n": np.array(3)},
    ),
    **{
        f"{op}_17".lower(): ([node(op, ["x"], ["y"], axes=[0, 2])], {"x": np.abs(X) + 0.5}, 17, {})
        for op in (
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSumSquare",
        )
    },
}


@pytest.mark.parametrize("ranks", [True, False], ids=["ranks", "no_ranks"])
@pytest.mark.parametrize("name", CASES)
def test_raised_model_computes_what_the_original_does(name: str, ranks: bool) -> None:
    nodes, inputs, opset, constants = CASES[name]
    proto = model(nodes, inputs, opset, constants, ranks=ranks)
    expected = run(proto, inputs)
    got = run(ir.to_proto(raised(proto)), inputs)
    for want, have in zip(expected, got, strict=True):
        assert want.dtype == have.dtype
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


LEGACY = {
    "add_at_axis": (
        [node("Add", ["x", "b"], ["y"], broadcast=1, axis=1)],
        {"x": X, "b": f32(3)},
        lambda x, b: x + b[:, None, None],
    ),
    "mul_at_negative_axis": (
        [node("Mul", ["x", "b"], ["y"], broadcast=1, axis=-2)],
        {"x": X, "b": f32(4)},
        lambda x, b: x * b[:, None],
    ),
    "add_suffix": (
        [node("Add", ["x", "b"], ["y"], broadcast=1)],
        {"x": X, "b": f32(4, 5)},
        lambda x, b: x + b,
    ),
    "consumed_inputs": (
        [node("Relu", ["x"], ["y"], consumed_inputs=[0])],
        {"x": X},
        lambda x: np.maximum(x, 0),
    ),
    "prelu_channels": (
        [node("PRelu", ["x", "s"], ["y"])],
        {"x": X, "s": f32(3)},
        lambda x, s: np.where(x > 0, x, x * s[:, None, None]),
    ),
    "reshape_attribute": (
        [node("Reshape", ["x"], ["y"], shape=[2, -1])],
        {"x": X},
        lambda x: x.reshape(2, -1),
    ),
    "cast_by_name": ([node("Cast", ["x"], ["y"], to="FLOAT")], {"x": np.arange(3)}, lambda x: x.astype("f")),
    "concat_default_axis": (
        [node("Concat", ["x", "x"], ["y"])],
        {"x": X},
        lambda x: np.concatenate([x, x], 1),
    ),
    "dropout_training_flag": ([node("Dropout", ["x"], ["y"], is_test=1)], {"x": X}, lambda x: x),
    "pad_paddings": (
        [node("Pad", ["x"], ["y"], paddings=[1, 0, 0, 2])],
        {"x": f32(2, 2)},
        lambda x: np.pad(x, ((1, 0), (0, 2))),
    ),
    "upsample_1": (
        [node("Upsample", ["x"], ["y"], height_scale=2.0, width_scale=3.0, mode="nearest")],
        {"x": SQUARE},
        lambda x: x.repeat(2, 2).repeat(3, 3),
    ),
    "selu_defaults": (
        [node("Selu", ["x"], ["y"])],
        {"x": X},
        lambda x: 1.0507 * np.where(x > 0, x, 1.6732 * np.expm1(x)),
    ),
    "mvn_1": (
        [node("MeanVarianceNormalization", ["x"], ["y"], across_channels=1)],
        {"x": X},
        lambda x: (x - x.mean()) / x.std(),
    ),
}


@pytest.mark.parametrize("name", LEGACY)
def test_models_before_opset_7_compute_what_their_operators_meant(name: str) -> None:
    nodes, inputs, meaning = LEGACY[name]
    got = run(ir.to_proto(raised(model(nodes, inputs, 1))), inputs)[0]
    np.testing.assert_allclose(got, meaning(*inputs.values()), rtol=1e-4, atol=1e-5)


def test_group_normalization_of_opset_18_gets_a_scale_per_channel() -> None:
    inputs = {"x": f32(2, 6, 3)}
    constants = {"s": f32(2), "b": f32(2)}
    nodes = [node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)]
    got = run(ir.to_proto(raised(model(nodes, inputs, 18, constants))), inputs)[0]
    groups = inputs["x"].reshape(2, 2, 9)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    want = normal * constants["s"][:, None] + constants["b"][:, None]
    np.testing.assert_allclose(got, want.reshape(2, 6, 3), rtol=1e-4, atol=1e-5)


def test_functions_of_another_opset_are_raised_by_their_own() -> None:
    body = helper.make_function(
        "f", "Sum", ["a"], ["b"], [node("ReduceSum", ["a"], ["b"], axes=[1])], [helper.make_opsetid("", 11)]
    )
    inputs = {"x": f32(2, 3)}
    proto = model(
        [node("Sum", ["x"], ["h"], domain="f"), node("Identity", ["h"], ["y"])], inputs, 17, functions=[body]
    )
    got = run(ir.to_proto(raised(proto)), inputs)[0]
    np.testing.assert_allclose(got, inputs["x"].sum(1, keepdims=True), rtol=1e-6)


def test_a_model_that_cannot_be_raised_keeps_its_opset_and_says_why(tmp_path: Path) -> None:
    nodes = [node("Resize", ["x", "s"], ["y"]), node("Clip", ["x"], ["z"], min=0.0)]
    inputs = {"x": SQUARE, "s": np.array([1, 1, 2, 2], "f")}
    proto = model(nodes, inputs, 10)
    onnx.save(proto, tmp_path / "m.onnx")
    program = import_onnx(tmp_path / "m.onnx").program
    assert program.main.opset_imports[""] == 10
    assert "kept opset 10" in program.source["opset_note"]
    assert "scales are not constant" in program.source["opset_note"]
    clip = next(n for n in program.main.graph if n.op_type == "Clip")
    assert "min" in clip.attributes  # untouched: half a raised model would mean nothing
    np.testing.assert_array_equal(run(ir.to_proto(program.main), inputs)[0], run(proto, inputs)[0])


def test_newer_opsets_are_kept() -> None:
    proto = model([node("Relu", ["x"], ["y"])], {"x": X}, 24)
    program = program_from_model(ir.from_proto(proto))
    assert program.main.opset_imports[""] == 24


def test_every_operator_without_a_kernel_at_the_program_opset_is_known() -> None:
    """A raised model must not lose the kernel that ONNX Runtime had for the older version."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels: dict[str, list[tuple[int, int]]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.domain == "" and kernel.provider == "CPUExecutionProvider":
            kernels.setdefault(kernel.op_name, []).append(tuple(kernel.version_range))

    def runs(op: str, version: int) -> bool:
        open_end = 2**31 - 1
        return any(a == version or (b != open_end and a <= version <= b) for a, b in kernels[op])

    lost = set()
    for op in kernels:
        try:
            schema = onnx.defs.get_schema(op, OPSET, "")
        except onnx.defs.SchemaError:
            continue
        if not schema.deprecated and not runs(op, schema.since_version):
            lost.add(op)
            assert runs(op, onnx.defs.get_schema(op, 21, "").since_version)
    assert lost == STUCK
