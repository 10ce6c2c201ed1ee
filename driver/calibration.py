"""Activations of the imported program on real inputs: ranges for FP16, second moments for fewer bits."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..compiler.draft import Draft
from ..compiler.options import Target
from ..compiler.program import Program
from ..compiler.reference import Array, Arrays
from ..passes.moments import Moment
from ..passes.precision.ranges import Ranges, ranges_of
from .workbench import SOURCE_BACKEND, Workbench, tensor_bytes

LARGEST = 1 << 30
"""Bytes of weights up to which second moments are measured: that runs the model in float32."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def measured_ranges(program: Program, inputs: Sequence[Arrays]) -> Ranges:
    """Least and greatest value of every float tensor of ``main``, run on the CPU as imported."""
    names = [
        value.name
        for node in program.main.graph
        for value in node.outputs
        if value.name and value.dtype in _FLOATS
    ]
    ranges: Ranges = {}
    with tempfile.TemporaryDirectory() as folder, Draft(Path(folder, "calibration")) as draft:
        built = Workbench(draft, SOURCE_BACKEND, Target("cpu")).source(program)
        with built.open(taps=names) as runner:
            for arrays in inputs:
                ranges = ranges_of({**arrays, **runner.run(arrays)}, ranges)
    return ranges


def measured_moments(program: Program, inputs: Sequence[Arrays]) -> dict[str, Moment]:
    """Second moments of what linear layers read, by name; none for a model over LARGEST."""
    read = [
        value
        for node in program.main.graph
        if node.op_type in ("MatMul", "Gemm") and (value := node.inputs[0]) is not None
    ]
    names = list(dict.fromkeys(str(v.name) for v in read if v.producer() is not None and v.dtype in _FLOATS))
    if not names or tensor_bytes(program) > LARGEST:
        return {}
    sums: dict[str, Array] = {}
    rows: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, Draft(Path(folder, "calibration")) as draft:
        built = Workbench(draft, SOURCE_BACKEND, Target("cpu")).source(program)
        with built.open(taps=names) as runner:
            for arrays in inputs:
                found = runner.run(arrays)
                for name in names:
                    flat = found[name].astype(np.float32).reshape(-1, found[name].shape[-1])
                    sums[name] = sums.get(name, 0) + flat.T @ flat
                    rows[name] = rows.get(name, 0) + len(flat)
    return {name: Moment(total / max(1, rows[name]), rows[name]) for name, total in sums.items()}
