"""Run an imported program, its layers included, on plain ONNX Runtime without any optimisation."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.program import Program

Arrays = dict[str, np.ndarray[Any, Any]]


def run_program(program: Program, *cases: Mapping[str, np.ndarray[Any, Any]]) -> list[tuple[Arrays, Arrays]]:
    """Outputs by name and layer values by layer path, for every case of inputs."""
    import onnxruntime as ort

    model = program.main.clone()
    made = {value.name: value for node in model.graph for value in node.outputs}
    outputs = [str(value.name) for value in model.graph.outputs]
    taps = [name for name in dict.fromkeys(program.layers.values()) if name not in outputs]
    model.graph.outputs.extend(made[name] for name in taps)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.data")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        results = []
        for inputs in cases:
            values = dict(zip([*outputs, *taps], session.run([*outputs, *taps], dict(inputs)), strict=True))
            layers = {path: values[name] for path, name in program.layers.items()}
            results.append(({name: values[name] for name in outputs}, layers))
    return results


def relative_error(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """Greatest difference over the greatest magnitude wanted; infinite if the shapes differ."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    difference = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    return float(difference.max(initial=0) / max(np.abs(wanted).max(initial=0), 1e-6))
