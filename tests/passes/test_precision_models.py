"""float16 conversion on exported networks: error bound, no fallback on CUDA, raised or left decomposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.onnxruntime import kernels, placement
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.precision import ConvertFp16
from miaotui.passes.precision.ranges import ranges_of
from miaotui.passes.raising import RAISING
from support.rewriting import ort_run, run_pass

pytestmark = pytest.mark.slow
CUDA = Target("cuda")
BOUND = 1e-2
"""Greatest scaled error of a whole network in float16: a few dozen roundings of 5e-4."""


def context(ranges: dict[str, tuple[float, float]] | None = None) -> PassContext:
    return PassContext(CUDA, lambda node: kernels.find("CUDA", node), ranges)


def measured(program: Program, feeds: dict[str, Any]) -> dict[str, tuple[float, float]]:
    tapped = program.clone()
    graph = tapped.main.graph
    graph.outputs.extend(v for n in graph for v in n.outputs if not v.is_graph_output())
    return ranges_of({**feeds, **ort_run(tapped, feeds)})


def error(got: dict[str, Any], wanted: dict[str, Any]) -> float:
    return max(float(np.abs(got[k] - wanted[k]).max() / max(1.0, np.abs(wanted[k]).max())) for k in wanted)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "gemma2", "bloom", "t5", "vit"])
@pytest.mark.parametrize("export", ["raised", "decomposed"])
def test_network_in_float16(export: str, family: str) -> None:
    exports = pytest.importorskip("support.exports")
    attention = "eager" if family in ("gemma2", "bloom") else "sdpa"
    opset = 23 if family in ("gemma2", "bloom", "t5") else 18  # the exports of test_raising_exports
    proto = exports.dynamo(family, opset, attention) if export == "raised" else exports.legacy(family, 14)
    source = exports.program(proto)
    feeds = {"x": exports.example(family, batch=1, sequence=9, seed=1)}
    for step in (*CLEANUP, *(RAISING if export == "raised" else ()), *CLEANUP):
        step.run(source, context())
    wanted = ort_run(source, feeds)
    before = len(placement.fallbacks(source, CUDA))
    for ranges in (None, measured(source, feeds)):
        program = source.clone()
        result = run_pass(ConvertFp16(), program, context(ranges))
        assert result.changed > len(result.declined), "most of a network runs in float16"
        assert error(ort_run(program, feeds), wanted) < BOUND
        assert len(placement.fallbacks(program, CUDA)) <= before


@pytest.mark.parametrize("scale", [30.0, 30000.0])
def test_network_with_activations_beyond_float16_stays_finite(scale: float) -> None:
    """Outlier channels, as large language models have them: the residual stream leaves float16's range."""
    exports = pytest.importorskip("support.exports")
    program = exports.program(exports.dynamo("llama", 18))
    for step in (*CLEANUP, *RAISING, *CLEANUP):
        step.run(program, context())
    scaled = 0
    for value in program.main.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tuple(tensor.shape) == (48, 32):  # from the MLP back to the residual stream
            value.const_value = ir.tensor(tensor.numpy() * np.float32(scale), name=value.name)
            scaled += 1
    assert scaled == 2, "one for each layer"
    feeds = {"x": exports.example("llama", batch=1, seed=2)}
    wanted = ort_run(program, feeds)
    result = run_pass(ConvertFp16(), program, context(measured(program, feeds)))
    got = ort_run(program, feeds)
    assert all(np.isfinite(v).all() for v in got.values())
    assert error(got, wanted) < 5 * BOUND
    if scale > 1000:
        assert any("float16 ends at 65504" in note.text for note in result.declined)
