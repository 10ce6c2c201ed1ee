"""Raising on real exports: from whatever exporter and opset, the same semantic operators appear."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.printer import print_program
from miaotui.compiler.ir.verify import verify
from miaotui.compiler.program import Program
from miaotui.frontends.onnx import program_from_model
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.raising import RAISING
from support.rewriting import operators, ort_run

os.environ.setdefault("OMP_NUM_THREADS", "1")

SEMANTIC = ("LayerNormalization", "RMSNormalization", "Gelu", "RotaryEmbedding", "Attention")
EXPECTED = {
    "bert": {"LayerNormalization": 5, "Gelu": 2, "Attention": 2},
    "gpt2": {"LayerNormalization": 5, "Gelu": 2, "Attention": 2},
    "vit": {"LayerNormalization": 5, "Gelu": 2, "Attention": 2},
    "t5": {"RMSNormalization": 5, "Attention": 2},
    "llama": {"RMSNormalization": 5, "RotaryEmbedding": 4, "Attention": 2},
    "gemma2": {"RMSNormalization": 9, "Gelu": 2, "RotaryEmbedding": 4, "Attention": 2},
    "bloom": {"LayerNormalization": 6, "Gelu": 2, "Attention": 2},
    "stablelm": {"LayerNormalization": 5, "RotaryEmbedding": 4, "Attention": 2},
    "cohere": {"LayerNormalization": 3, "RotaryEmbedding": 4, "Attention": 2},
}
"""Two layers of each: how often each semantic operator appears, from every exporter."""

GONE = ("Softmax", "Erf", "ReduceMean", "Gemm")
EAGER_ONLY = ("gemma2", "bloom")
SIZES = ((1, 5), (3, 9))

FAST = [("bert", "legacy", 11), ("llama", "legacy", 14), ("gpt2", "dynamo", 18)]
LEGACY = (11, 14, 17)
DYNAMO = (18, 23)
CASES = [
    *FAST,
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for place, family in enumerate(EXPECTED)
        for case in (
            (family, "legacy", LEGACY[place % 3]),
            (family, "legacy", LEGACY[(place + 1) % 3]),
            (family, "dynamo", 23 if family in EAGER_ONLY else DYNAMO[place % 2]),
        )
        if case not in FAST
        # The TorchScript exporter writes Cohere's repeat_interleave with a size of the example baked in.
        if case[:2] != ("cohere", "legacy")
    ),
]
"""Of each family two opsets of the old exporter and one of the new; every opset meets several families."""


def raised(proto: onnx.ModelProto) -> Program:
    """The model after cleanup, raising and cleanup, verified after every pass, honest about what changed."""
    program = program_from_model(ir.from_proto(proto))
    for step in (*CLEANUP, *RAISING, *CLEANUP):
        before = print_program(program)
        result = step.run(program, PassContext())
        assert bool(result.changed) == (print_program(program) != before), step.name
        verify(program, after=step.name)
    return program


def outputs(program: Program, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The result in ONNX Runtime; it takes no rotary table that broadcasts, so those by the reference."""
    if "RotaryEmbedding" in operators(program) and x.shape[0] > 1:
        return evaluate(program.main, {"x": x})["y"]
    return ort_run(program, {"x": x})["y"]


@pytest.mark.parametrize(("family", "kind", "opset"), CASES)
def test_every_export_is_raised_to_the_same_operators(family: str, kind: str, opset: int) -> None:
    exports = pytest.importorskip("support.exports")
    attention = "eager" if kind == "legacy" or family in EAGER_ONLY else "sdpa"
    proto = getattr(exports, kind)(family, opset, attention)
    program = raised(proto)
    counts = operators(program)
    assert {name: counts[name] for name in SEMANTIC if counts[name]} == EXPECTED[family]
    assert not [name for name in GONE if counts[name]]
    original = program_from_model(ir.from_proto(proto))
    for seed, (batch, sequence) in enumerate(SIZES):
        x = exports.example(family, batch, sequence, seed)
        expected, got = outputs(original, x), outputs(program, x)
        error = float(np.abs(expected - got).max()) / max(1.0, float(np.abs(expected).max()))
        assert error <= 1e-5, f"scaled error {error:.1e} at batch {batch}, sequence {sequence}"


def test_exporters_of_different_age_end_in_programs_of_the_same_size() -> None:
    exports = pytest.importorskip("support.exports")
    old = operators(raised(exports.legacy("bert", 11)))
    new = operators(raised(exports.dynamo("bert", 23)))
    layers = ("MatMul", "Transpose", "Reshape", "Attention", "LayerNormalization", "Gelu")
    assert {n: old[n] for n in layers} == {n: new[n] for n in layers}
    assert Counter(old)["Concat"] <= 4
