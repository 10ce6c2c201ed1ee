"""Predicted and real placement: what falls from CUDA to the CPU, and what only looks so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.onnxruntime import kernels, placement
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program

CUDA = Target("cuda")
REAL = Path(__file__).with_name("placement_cuda.json")


def _program(text: str) -> Program:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {text}')
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"n{index}"
    return Program({"main": ir.from_proto(onnx.shape_inference.infer_shapes(model))})


def test_names_every_node_without_a_cuda_kernel() -> None:
    program = _program("g (float[N, 4] x) => (float[N, 4] z) { a = Acos(x) y = MatMul(a, x) z = Tan(y) }")
    problems = placement.fallbacks(program, CUDA)
    assert [p.place for p in problems] == ["node 'n0' (Acos)", "node 'n2' (Tan)"]
    assert problems[0].fact == "CUDA has no kernel for Acos-23"
    assert placement.fallbacks(program, Target("cpu")) == []


def test_shape_arithmetic_is_no_fallback() -> None:
    program = _program(
        "g (float[N, M] x) => (float[K] y) <int64 two = {2}> "
        "{ s = Shape(x) d = BitwiseNot(s) e = BitwiseNot(d) p = ReduceProd<keepdims=1>(e) y = Reshape(x, p) }"
    )
    assert kernels.find("CUDA", program.main.graph.node(1), 23) is not None
    assert placement.fallbacks(program, CUDA) == []


def test_activation_pulled_to_the_host_by_a_shape_scalar_is_named() -> None:
    program = _program("g (float[N, 4] x) => (float[N, 4] y) { s = Size(x) f = Cast<to=1>(s) y = Mul(x, f) }")
    assert [p.place for p in placement.fallbacks(program, CUDA)] == ["node 'n2' (Mul)"]


def test_finds_fallbacks_inside_subgraphs() -> None:
    program = _program(
        "g (bool c, float[N] x) => (float[N] y) { y = If (c) <then_branch = t () => (float[N] a) "
        "{ a = Tan(x) }, else_branch = e () => (float[N] b) { b = Relu(x) }> }"
    )
    assert [p.place.split("(")[-1] for p in placement.fallbacks(program, CUDA)] == ["Tan)"]


@pytest.mark.slow
def test_prediction_equals_what_the_cuda_provider_did() -> None:
    """All nodes of ONNX's operator cases; recorded from the CUDA provider on stub_cuda.py."""
    from onnx.backend.test.case.node import collect_testcases

    recorded: dict[str, list[int]] = json.loads(REAL.read_text())
    checked, wrong = 0, []
    for case in collect_testcases(None):
        if case.model is None or case.name not in recorded:
            continue
        model = _inferred(case.model)
        host = placement.host_values(model)
        for index, node in enumerate(model.graph):
            if node.op_type == "Constant":
                continue
            on_cpu = index in recorded[case.name]
            reason = kernels.find("CUDA", node, model.opset_imports.get(node.domain, 1), exact=True)
            predicted = reason is not None or any(v in host for v in node.outputs)
            harmless = placement._harmless(node, host) or placement._produces_shapes(node)
            checked += 1
            if not harmless and predicted != on_cpu:
                wrong.append(f"{case.name} {node.op_type}: {reason}")
    assert checked > 3000
    assert wrong == []


def _inferred(proto: onnx.ModelProto) -> ir.Model:
    try:
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    except Exception:
        return ir.from_proto(proto)


def _session(program: Program, level: str = "ORT_DISABLE_ALL") -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(placement.RECORD, "1")
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    data = ir.to_proto(program.main).SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def test_actual_placement_is_read_from_the_session() -> None:
    program = _program(
        "g (float[N, 4] x) => (float[N, 4] y) { t = Tan(x) s = Shape(t) z = Relu(t) y = Reshape(z, s) }"
    )
    session = _session(program)
    assert {n[0] for n in placement.assigned(session, "CPUExecutionProvider")} == {"n0", "n1", "n2", "n3"}
    problems = placement.actual(session, program)
    assert [p.place for p in problems] == ["node 'n0' (Tan)", "node 'n2' (Relu)", "node 'n3' (Reshape)"]
    assert problems[0].fact == "CUDA has no kernel for Tan-23"
    assert problems[1].fact == "ONNX Runtime placed it on the CPU"


def test_nodes_made_by_onnxruntime_are_named_too() -> None:
    program = _program("g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) { a = MatMul(x, w) y = Relu(a) }")
    program.main.graph.inputs.pop()
    weight = next(v for v in program.main.graph.node(0).inputs if v is not None and v.name == "w")
    weight.const_value = ir.tensor(np.ones((4, 4), np.float32), name="w")
    program.main.graph.register_initializer(weight)
    assert len(placement.actual(_session(program, "ORT_ENABLE_ALL"), program)) >= 1


def test_a_cuda_model_is_written_at_the_opset_its_kernels_have(tmp_path: Path) -> None:
    from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
    from miaotui.compiler.weights import WeightStore

    program = _program(
        "g (float[1, 1, 4, 4] x) => (float[1, 1, 2, 2] y) { y = MaxPool<kernel_shape=[3, 3]>(x) }"
    )
    assert placement.fallbacks(program, CUDA) == []
    with WeightStore(tmp_path / "weights.bin") as weights:
        for target, opset in ((CUDA, 21), (Target("cpu"), 23)):
            build = OnnxRuntimeBackend().build(program, target, tmp_path, weights)
            assert onnx.load(tmp_path / build.entries["main"]).opset_import[0].version == opset
    assert program.main.opset_imports[""] == 23
