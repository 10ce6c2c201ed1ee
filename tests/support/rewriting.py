"""Helpers of pass tests: run passes verified, run programs in ONNX Runtime, compare before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.ir.verify import verify
from miaotui.compiler.program import Program
from miaotui.passes.base import Pass, PassContext, PassResult

Arrays = dict[str, np.ndarray[Any, Any]]

TOLERANCE = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 2e-6, np.dtype(np.float16): 4e-3}
"""Greatest scaled error between two orders of the same arithmetic, by dtype."""


def run_pass(step: Pass, program: Program, context: PassContext | None = None) -> PassResult:
    """Run ``step`` on ``program`` in place; the result verified, and nothing left to do on a second run."""
    context = context or PassContext()
    result = step.run(program, context)
    verify(program, after=step.name)
    again = step.run(program, context)
    assert not again.changed, f"{step.name} changes its own result: {again.hits}"
    return result


def operators(program: Program) -> Counter[str]:
    """How often each operator occurs in ``main``, subgraphs included."""
    return Counter(
        f"{n.domain}::{n.op_type}" if n.domain else n.op_type for g in program.main.graphs() for n in g
    )


def ort_run(program: Program, feeds: Mapping[str, np.ndarray[Any, Any]], optimize: bool = True) -> Arrays:
    """Outputs of ``main`` in ONNX Runtime on CPU, by name."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    if not optimize:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = ir.to_proto(program.main).SerializeToString()
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_same(expected: Arrays, got: Arrays, tolerance: float | None = None) -> None:
    """Same outputs, shapes and dtypes; floats within ``tolerance`` scaled error, everything else exactly."""
    assert expected.keys() == got.keys()
    for name, reference in expected.items():
        value = got[name]
        assert (value.dtype, value.shape) == (reference.dtype, reference.shape), name
        if not np.issubdtype(reference.dtype, np.floating):
            np.testing.assert_array_equal(value, reference)
            continue
        bound = TOLERANCE[reference.dtype] if tolerance is None else tolerance
        a, b = value.astype(np.float64), reference.astype(np.float64)
        assert np.array_equal(np.isnan(a), np.isnan(b)), name
        error = np.nanmax(np.abs(a - b), initial=0) / max(1.0, np.nanmax(np.abs(b), initial=0))
        assert error <= bound, f"{name}: scaled error {error:.2e} > {bound:.0e}"


def check(
    step: Pass | Sequence[Pass], program: Program, feeds: Sequence[Arrays], tolerance: float | None = None
) -> list[PassResult]:
    """Run the pass or passes and compare ONNX Runtime's outputs before and after for every feed."""
    before = [ort_run(program, feed) for feed in feeds]
    steps = [step] if isinstance(step, Pass) else list(step)
    results = [run_pass(one, program) for one in steps]
    for feed, expected in zip(feeds, before, strict=True):
        assert_same(expected, ort_run(program, feed), tolerance)
    return results


def reasons(result: PassResult) -> str:
    """Why candidates were declined, one a line."""
    return "\n".join(note.text for note in result.declined)
