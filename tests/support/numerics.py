"""Running a model and comparing results, as the property tests of every room do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.histograms import Histogram

Arrays = Mapping[str, np.ndarray[Any, Any]]

BOUND = {np.dtype(np.float32): 1e-4, np.dtype(np.float16): 2e-2, np.dtype(np.float64): 1e-4}
"""Greatest scaled error by dtype of the outputs; anything else must be equal."""


def run_ort(model: ir.Model, inputs: Arrays, optimize: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs by name of ONNX Runtime on the CPU, its own graph optimizations off unless asked for."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def scaled_error(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """``max|actual - expected| / max(1, max|expected|)``; infinite where only one of them is finite."""
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    same = (a == e) | (np.isnan(a) & np.isnan(e))
    if a.size == 0 or same.all():
        return 0.0
    if not np.isfinite(a[~same]).all() or not np.isfinite(e[~same]).all():
        return float("inf")
    return float(np.abs(a - e)[~same].max() / max(1.0, np.abs(e[np.isfinite(e)]).max()))


def assert_close(actual: Arrays, expected: Arrays) -> None:
    """Same names, dtypes and shapes; values within the dtype's bound."""
    assert list(actual) == list(expected)
    for name, reference in expected.items():
        array = actual[name]
        assert (array.dtype, array.shape) == (reference.dtype, reference.shape), name
        if reference.dtype in BOUND:
            error = scaled_error(array, reference)
            assert error <= BOUND[reference.dtype], f"{name}: scaled error {error:.2e}"
        else:
            np.testing.assert_array_equal(array, reference, err_msg=name)


def histograms(*cases: Arrays) -> Any:
    """What the driver measures: histograms of values of the program as it is, over ``cases``."""

    def measured(program: Program, names: list[str]) -> dict[str, Histogram]:
        found: dict[str, Histogram] = {}
        for case in cases:
            results = {**case, **evaluate(program.main, case, [n for n in names if n not in case])}
            for name in names:
                joined = Histogram.of(results[name], found.get(name))
                assert joined is not None
                found[name] = joined
        return found

    return measured
