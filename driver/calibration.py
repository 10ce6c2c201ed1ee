"""Activation ranges of the imported program on real inputs: what the FP16 range guard goes by."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from ..compiler.draft import Draft
from ..compiler.options import Target
from ..compiler.program import Program
from ..compiler.reference import Arrays
from ..passes.precision.ranges import Ranges, ranges_of
from .workbench import Workbench

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def measured_ranges(program: Program, backend: str, inputs: Sequence[Arrays]) -> Ranges:
    """Least and greatest value of every float tensor of ``main``, run on the CPU as imported."""
    names = [
        value.name
        for node in program.main.graph
        for value in node.outputs
        if value.name and value.dtype in _FLOATS
    ]
    ranges: Ranges = {}
    with tempfile.TemporaryDirectory() as folder, Draft(Path(folder, "calibration")) as draft:
        built = Workbench(draft, backend, Target("cpu")).source(program)
        with built.open(taps=names) as runner:
            for arrays in inputs:
                ranges = ranges_of({**arrays, **runner.run(arrays)}, ranges)
    return ranges
