"""Big models: weights stay mapped, memory does not grow with them, and every layout of their files works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytestmark = pytest.mark.slow

LAYERS, WIDTH = 5, 8192  # 5 x 256 MiB of float32
BYTES = WIDTH * WIDTH * 4

_IMPORT = """
import json, sys, time
from pathlib import Path

def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))

import onnx, onnxruntime
import miaotui.frontends.onnx as frontend
import miaotui.compiler.ir.evaluate, miaotui.compiler.ir.verify
before, start = anonymous(), time.process_time()
result = frontend.import_onnx(sys.argv[1])
seconds = time.process_time() - start
weight = result.program.main.graph.initializers["w0"].const_value
corner = float(weight.numpy()[-1, -1])
print(json.dumps({
    "grown": anonymous() - before, "seconds": seconds, "kind": type(weight).__name__, "corner": corner,
    "opset": result.program.main.opset_imports[""],
}))
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of opset 11 with 1.3 GB of external data, laid out as in a hub cache: symlinks to blobs."""
    root = tmp_path_factory.mktemp("hub")
    blobs, snapshot = root / "blobs", root / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    graph = helper.make_graph(
        [node for i in range(LAYERS) for node in _layer(i)],
        "big",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, ["batch", WIDTH])],
        [_external(i) for i in range(LAYERS)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    (blobs / "model").write_bytes(proto.SerializeToString())
    with (blobs / "data").open("wb") as file:
        file.truncate(LAYERS * BYTES)
        file.seek(BYTES - 4)
        file.write(np.float32(2.5).tobytes())
    (snapshot / "model.onnx").symlink_to("../../blobs/model")
    (snapshot / "model.onnx_data").symlink_to("../../blobs/data")
    return snapshot / "model.onnx"


def _layer(i: int) -> list[onnx.NodeProto]:
    return [
        helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"m{i}"], name=f"/layer.{i}/MatMul"),
        helper.make_node("Softmax", [f"m{i}"], [f"h{i + 1}"], name=f"/layer.{i}/Softmax"),
    ]


def _external(i: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "model.onnx_data"), ("offset", i * BYTES), ("length", BYTES)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_a_model_over_a_gigabyte_is_imported_without_loading_its_weights(big: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _IMPORT, str(big)], capture_output=True, text=True, check=True
    )
    result = json.loads(run.stdout)
    assert result["kind"] == "ExternalTensor"
    assert result["corner"] == 2.5
    assert result["opset"] == 23
    assert result["grown"] < 200e6
    assert result["seconds"] < 10
