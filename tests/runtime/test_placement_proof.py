"""The proof of placement reads a real session; without a GPU it says what is missing."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from miaotui.compiler.errors import ToolError
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import Target
from miaotui.runtime import onnxruntime as room
from miaotui.runtime.onnxruntime import OnnxRuntimeModel
from miaotui.runtime.placement import left_to_cpu_by


def _model(device: Any) -> OnnxRuntimeModel:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> '
        "g (float[N, 4] x) => (float[N, 4] y) { a = Tan(x) y = Relu(a) }"
    )
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
    return OnnxRuntimeModel(data=proto.SerializeToString(), signature=Entry((), ()), target=Target(device))


def test_a_cpu_variant_has_nothing_to_prove() -> None:
    assert left_to_cpu_by(_model("cpu")) == []


def test_names_what_the_session_left_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU session stands in for a CUDA one that took no node at all."""
    ort = pytest.importorskip("onnxruntime")

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(room, "_providers", lambda *_: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    problems = left_to_cpu_by(_model("cuda"))
    assert [(p.place, p.fact) for p in problems] == [
        ("node 'n0' (Tan)", "CUDA has no kernel for Tan-21"),
        ("node 'n1' (Relu)", "ONNX Runtime placed it on the CPU"),
    ]


def test_without_the_provider_the_fix_is_a_command() -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this machine may have a GPU")
    with pytest.raises(ToolError, match="onnxruntime-gpu"):
        left_to_cpu_by(_model("cuda"))
