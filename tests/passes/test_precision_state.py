"""16 bits of a decoder's state: kept as it is computed, written in place, equal to the float32 decoder."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.onnxruntime.state import is_in_place
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.lowering.onnxruntime import ExpandCachedAttention
from miaotui.passes.precision.fp16 import ConvertBf16, ConvertFp16
from support.decode_graphs import Layers
from support.rewriting import run_pass


def lowered(program: Program) -> Program:
    run_pass(ExpandCachedAttention(), program, PassContext(Target("cuda")))
    for step in CLEANUP:
        step.run(program, PassContext())
    return program


@pytest.mark.parametrize(
    ("step", "dtype", "tolerance"),
    [(ConvertFp16(), ir.DataType.FLOAT16, 5e-3), (ConvertBf16(), ir.DataType.BFLOAT16, 4e-2)],
)
def test_the_cache_is_kept_as_it_is_computed_and_in_place(
    step: ConvertFp16, dtype: ir.DataType, tolerance: float
) -> None:
    layers = Layers()
    feeds = layers.feeds([3, 0, 9], 2)
    expected = evaluate(lowered(layers.program()).entries["decode"], feeds)
    program = layers.program()
    found = run_pass(step, program)
    lowered(program)
    states = [state.input for state in layers.decoding().state]
    names = {note.node for note in found.hits if note.text.startswith("state is")}
    specs = {spec.name: spec.dtype for spec in (*program.inputs("decode"), *program.outputs("decode"))}
    assert names == set(states) and {specs[name] for name in states} == {dtype}
    assert {specs[state.output] for state in layers.decoding().state} == {dtype}
    assert specs["logits"] == ir.DataType.FLOAT
    decode = program.entries["decode"]
    assert is_in_place(decode, layers.decoding())
    assert not [n for n in decode.graph if n.op_type == "Clip"]
    narrow = {name: array.astype(dtype.numpy()) if name in states else array for name, array in feeds.items()}
    got = evaluate(decode, narrow)
    scale = max(1.0, float(np.abs(expected["logits"]).max()))
    assert np.abs(got["logits"] - expected["logits"]).max() <= tolerance * scale
    for state in layers.decoding().state:
        kept = got[state.output].astype(np.float32)
        assert np.abs(kept - expected[state.output]).max() <= tolerance * scale


def test_state_that_is_read_in_float32_stays_so() -> None:
    layers = Layers()
    program = layers.program()
    found = run_pass(ConvertFp16(keep=("CachedAttention",)), program)
    assert not [note for note in found.hits if note.text.startswith("state is")]
    specs = {spec.name: spec.dtype for spec in program.inputs("decode")}
    assert {specs[s.input] for s in layers.decoding().state} == {ir.DataType.FLOAT}
