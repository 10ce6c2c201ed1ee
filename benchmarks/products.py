"""The roofline of a model's weight products: the same MatMuls in onnxruntime with nothing between them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from interleave import Arrays, Run


def products_alone(model: Path, threads: int, inputs: Arrays) -> Run:
    """The same matrix products with nothing between them, in onnxruntime: the roofline of its kernels.

    Sizes are those of the MatMul and Gemm nodes with constant weights in ``model`` as ``inputs`` run it.
    """
    import onnx_ir as ir
    import onnxruntime

    shapes = _product_shapes(model, inputs)
    nodes, weights, outputs = [], [], []
    values: dict[tuple[int, int], ir.Value] = {}
    for index, (rows, inner, columns) in enumerate(shapes):
        x = values.setdefault((rows, inner), ir.val(f"x{rows}x{inner}", ir.DataType.FLOAT, [rows, inner]))
        tensor = ir.tensor(np.full((inner, columns), 0.01, np.float32), name=f"w{index}")
        weight = ir.val(f"w{index}", const_value=tensor)
        node = ir.node("MatMul", [x, weight])
        nodes.append(node)
        weights.append(weight)
        node.outputs[0].name = f"y{index}"
        node.outputs[0].type, node.outputs[0].shape = (
            ir.TensorType(ir.DataType.FLOAT),
            ir.Shape([rows, columns]),
        )
        outputs.append(node.outputs[0])
    inputs_of = list(values.values())
    graph = ir.Graph(inputs_of, outputs, nodes=nodes, initializers=weights, opset_imports={"": 23})
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.onnx"
        ir.save(ir.Model(graph, ir_version=10), path, external_data="products.data")
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    feeds = {str(v.name): np.full((r, k), 0.1, np.float32) for (r, k), v in values.items()}
    results = session.io_binding()
    for name, array in feeds.items():
        results.bind_cpu_input(name, array)
    for output in session.get_outputs():
        results.bind_output(output.name)
    return lambda: session.run_with_iobinding(results)


def _product_shapes(model: Path, inputs: Arrays) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of every product with a constant weight, from one run that shows them."""
    import onnx_ir as ir
    import onnxruntime

    loaded = ir.load(model)
    found = []
    for node in loaded.graph:
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        if weight is not None and (weight.is_initializer() or _moves_weight(weight)):
            found.append(node)
    for node in found:
        for value in (node.inputs[0], node.outputs[0]):
            if value is not None and value not in loaded.graph.outputs and value not in loaded.graph.inputs:
                loaded.graph.outputs.append(value)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "taps.onnx"
        ir.save(loaded, path, external_data="taps.data")
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        shapes = {n: np.shape(v) for n, v in zip(names, session.run(names, inputs), strict=True)}
    shapes.update({name: array.shape for name, array in inputs.items()})
    triples = []
    for node in found:
        x, y = shapes[str(node.inputs[0].name)], shapes[str(node.outputs[0].name)]  # type: ignore[union-attr]
        triples.append((int(np.prod(y[:-1])), int(x[-1]), int(y[-1])))
    return triples


def _moves_weight(value: Any) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Transpose" and node.inputs[0].is_initializer()
