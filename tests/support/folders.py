"""Small programs and executable folders for tests of the artifact, the backend and the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.draft import Draft
from miaotui.compiler.manifest import Certificate, Entry, Manifest, PassRecord, Variant
from miaotui.compiler.options import Target
from miaotui.compiler.program import Call, DimRange, Program
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


def mlp(width: int = 32, seed: int = 0, layers: int = 2) -> Program:
    """x: float32[batch, width] through ``layers`` of MatMul, Add, Relu; layer i computes value ``h<i>``."""
    rng = np.random.default_rng(seed)
    nodes, weights, x = [], [], "x"
    for i in range(layers):
        out = "y" if i == layers - 1 else f"h{i}"
        weights.append(numpy_helper.from_array(rng.standard_normal((width, width), np.float32), f"w{i}"))
        weights.append(numpy_helper.from_array(rng.standard_normal(width).astype(np.float32), f"b{i}"))
        nodes += [
            helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"], name=f"matmul{i}"),
            helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"], name=f"add{i}"),
            helper.make_node("Relu", [f"a{i}"], [out], name=f"relu{i}"),
        ]
        x = out
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        weights,
    )
    return program(
        graph,
        dims={"batch": DimRange(1, 64)},
        call=Call({"x": "x"}, "y"),
        layers={f"net.{i}": "y" if i == layers - 1 else f"h{i}" for i in range(layers)},
    )


def program(graph: Any, **fields: Any) -> Program:
    """A program whose main entry is the ONNX ``graph``."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    return Program({"main": ir.from_proto(model)}, source={"framework": "onnx"}, **fields)


def run_mlp(made: Program, x: Array) -> dict[str, Array]:
    """What ``mlp`` computes, in numpy, by value name."""
    weights = {v.name: v.const_value.numpy() for v in made.main.graph.initializers.values() if v.const_value}
    values: dict[str, Array] = {}
    count = len(weights) // 2
    for i in range(count):
        x = np.maximum(x @ weights[f"w{i}"] + weights[f"b{i}"], 0)
        values["y" if i == count - 1 else f"h{i}"] = x
    return values


def manifest_of(made: Program, variants: dict[str, Variant], **fields: Any) -> Manifest:
    """A manifest for ``made`` whose default variant is the last one."""
    return Manifest(
        name="test",
        entries={name: Entry(made.inputs(name), made.outputs(name)) for name in made.entries},
        variants=variants,
        default=list(variants)[-1],
        dims=made.dims,
        call=made.call,
        layers=made.layers,
        source=made.source,
        **fields,
    )


def write_folder(folder: Path, made: Program | None = None, golden: bool = True) -> Program:
    """Write an executable folder of ``made`` (the MLP by default): variants ``source`` and ``cpu-ort``."""
    made = mlp() if made is None else made
    backend, target = OnnxRuntimeBackend(), Target()
    variants = {}
    with Draft(folder) as draft:
        for name, role in (("source", "source"), ("cpu-ort", "optimized")):
            build = backend.build(made, target, draft.variant(name), draft.weights)
            files = {entry: f"variants/{name}/{file}" for entry, file in build.entries.items()}
            variants[name] = Variant(
                role="source" if role == "source" else "optimized",
                target="cpu",
                backend="ort",
                entries=files,
                settings=build.settings,
                operators={"MatMul": 2, "Add": 2, "Relu": 2},
                passes=(PassRecord("fuse", 1, ("matmul0: done",), seconds=0.5),),
            )
        if golden and made.layers:
            x = np.random.default_rng(1).standard_normal((2, 32)).astype(np.float32)
            draft.golden({"x": x}, {"y": run_mlp(made, x)["y"]})
        certificate = Certificate("numpy", True, 1e-4, {"y": 0.0}, "cpu-ort")
        draft.write_text("report.json", '{"stages": []}')
        draft.finish(manifest_of(made, variants, certificate=certificate))
    return made
