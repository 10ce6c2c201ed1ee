"""The proof of placement reads a real session; without a GPU it says what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from miaotui.compiler.errors import PlacementError, ToolError
from miaotui.compiler.manifest import Entry, Variant
from miaotui.compiler.options import CompileOptions, Target
from miaotui.driver.context import check_session
from miaotui.driver.progress import Journal, Silent
from miaotui.driver.workbench import Built
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


@pytest.fixture
def no_node_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU session stands in for a CUDA one that took no node at all."""
    ort = pytest.importorskip("onnxruntime")

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(room, "_providers", lambda *_: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Session)


@pytest.mark.usefixtures("no_node_taken")
def test_names_what_the_session_left_to_the_cpu() -> None:
    problems = left_to_cpu_by(_model("cuda"))
    assert [(p.place, p.fact) for p in problems] == [
        ("node 'n0' (Tan)", "CUDA has no kernel for Tan-21"),
        ("node 'n1' (Relu)", "ONNX Runtime placed it on the CPU"),
    ]


@pytest.mark.usefixtures("no_node_taken")
def test_strict_proves_every_entry_by_name(tmp_path: Path) -> None:
    models = {"main": _model("cuda"), "decode": _model("cuda")}
    variant = Variant("optimized", "cuda", "ort", {})
    built = Built("cuda-ort", variant, models, 0, None, tmp_path)
    with pytest.raises(PlacementError) as caught:
        check_session(built, CompileOptions(target=Target("cuda")), Journal(Silent()))
    assert [p.place for p in caught.value.problems] == [
        "node 'n0' (Tan)", "node 'n1' (Relu)",
        "entry decode, node 'n0' (Tan)", "entry decode, node 'n1' (Relu)",
    ]  # fmt: skip
    assert "--no-strict" in str(caught.value)
    journal = Journal(Silent())
    check_session(built, CompileOptions(target=Target("cuda"), strict=False), journal)
    assert len(journal.notes) == 4


def test_without_the_provider_the_fix_is_a_command() -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this machine may have a GPU")
    with pytest.raises(ToolError, match="onnxruntime-gpu"):
        left_to_cpu_by(_model("cuda"))
