"""A large multilayer perceptron with random external data, written in constant memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def write_big_model(folder: Path, layers: int, width: int) -> Path:
    """``layers`` × (MatMul width×width, Relu) on float32[batch, width]; weights in ``data.bin``. Its path."""
    random = np.random.default_rng(0)
    size, scale = width * width * 4, np.float32(width**-0.5)
    nodes, weights = [], []
    with (folder / "data.bin").open("wb") as file:
        for i in range(layers):
            file.write((scale * random.standard_normal((width, width), dtype=np.float32)).tobytes())
            weight = onnx.TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
            weight.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "data.bin"), ("offset", i * size), ("length", size)):
                weight.external_data.add(key=key, value=str(value))
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"]))
            nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    ends = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["batch", width]) for i in (0, layers)]
    graph = helper.make_graph(nodes, "big", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "big.onnx"
    onnx.save(model, path)
    return path
