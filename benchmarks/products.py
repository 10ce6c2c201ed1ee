"""The roofline of a model's weight products: the same MatMuls in onnxruntime with nothing between them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from interleave import Run


def products_alone(model: Path, threads: int, tokens: int) -> Run:
    """Products of the sizes of ``model``'s constant weights, back to back, outputs bound beforehand.

    Inputs have ``tokens`` rows where the model's have three dimensions, else one row (a pooler).
    """
    import onnx_ir as ir
    import onnxruntime

    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []
    inputs: dict[tuple[int, int], ir.Value] = {}
    for index, (rows, inner, columns) in enumerate(_sizes(model, tokens)):
        tensor = ir.tensor(np.full((inner, columns), 0.01, np.float32), name=f"w{index}")
        weights.append(ir.val(f"w{index}", const_value=tensor))
        x = inputs.setdefault((rows, inner), ir.val(f"x{rows}x{inner}", ir.DataType.FLOAT, [rows, inner]))
        nodes.append(ir.node("MatMul", [x, weights[-1]]))
        nodes[-1].outputs[0].name = f"y{index}"
        nodes[-1].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        nodes[-1].outputs[0].shape = ir.Shape([rows, columns])
    outputs = [node.outputs[0] for node in nodes]
    feeds, imports = list(inputs.values()), {"": 23}
    graph = ir.Graph(
        feeds, outputs, nodes=nodes, initializers=weights, opset_imports=imports, name="products"
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.onnx"
        ir.save(ir.Model(graph, ir_version=10), path, external_data="products.data")
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for (rows, inner), value in inputs.items():
        binding.bind_cpu_input(value.name, np.full((rows, inner), 0.1, np.float32))
    for output in session.get_outputs():
        binding.bind_output(output.name)
    return lambda: session.run_with_iobinding(binding)


def _sizes(model: Path, tokens: int) -> list[tuple[int, int, int]]:
    """(rows, inner, columns) of every product with a constant weight."""
    import onnx_ir as ir

    sizes = []
    for node in ir.load(model).graph:
        if node.op_type not in ("MatMul", "Gemm") or node.inputs[0] is None or node.inputs[1] is None:
            continue
        weight, x = node.inputs[1], node.inputs[0]
        turn = weight.producer()
        turned = bool(node.attributes.get_int("transB", False))
        if turn is not None and turn.op_type == "Transpose" and turn.inputs[0] is not None:
            weight, turned = turn.inputs[0], not turned
        if weight.is_initializer() and weight.shape is not None and x.shape is not None:
            inner, columns = weight.shape.numpy()[:: -1 if turned else 1]
            sizes.append((tokens if len(x.shape) > 2 else 1, inner, columns))
    return sizes
