"""group-query-attention for CUDA, run by the CPU's kernel, which takes and refuses the same calls."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.onnxruntime.backend import OnnxRuntimeBackend
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.manifest import IN_PLACE, ROW_BY_ROW
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.program import Program
from miaotui.compiler.weights import WeightStore
from miaotui.passes.base import PassContext
from miaotui.passes.lowering.onnxruntime import gqa
from miaotui.passes.lowering.onnxruntime.gqa import UseGroupQueryAttention
from miaotui.passes.pipeline import pipeline
from support.decode_graphs import Arrays, Layers, ort_decode
from support.rewriting import reasons, run_pass

CUDA = PassContext(Target("cuda"))

CASES = (([0], 5, 24), ([11], 6, 24), ([3, 0, 9], 1, 24), ([0, 0, 0], 24, 24), ([2], 4, 48), ([0], 1, 1))
"""Past lengths of the rows, new tokens, capacity: chunks of one row, steps, prompts that fill the capacity,
and a capacity beyond the context."""

HALF = {"fp16": 2e-2, "bf16": 2e-1}
"""Largest error of a logit, as a share of the largest logit."""


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's form in float32, which has a kernel on the CPU only."""
    monkeypatch.setitem(gqa.DTYPES, "cuda", (ir.DataType.FLOAT,))


def kinds(program: Program) -> Counter[str]:
    return Counter(node.op_type for node in program.entries["decode"].graph)


def assert_like(layers: Layers, got: Arrays, wanted: Arrays, feeds: Arrays, tolerance: float) -> None:
    greatest = max(1.0, float(np.abs(wanted["logits"]).max()))
    assert np.abs(got["logits"].astype(np.float32) - wanted["logits"]).max() <= tolerance * greatest
    tokens = feeds["input_ids"].shape[1]
    for state in layers.decoding().state:
        for row, past in enumerate(feeds["past_lengths"]):
            held = slice(0, past + tokens)
            made = got[state.output][row, :, held].astype(np.float32)
            assert np.abs(made - wanted[state.output][row, :, held]).max() <= 10 * tolerance, state.output


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(
    "layers",
    [
        Layers(),
        Layers(heads=6, kv_heads=1, size=32, packed=True),
        Layers(rotary="interleaved", norms=True),
        Layers(size=32, rotated=16, scale=0.6),
        Layers(window=3, softcap=2.0),
        Layers(rotary="none", window=5, packed=True, heads=2),
        Layers(rotary="by length", softcap=1.5),
    ],
    ids=str,
)
def test_chunks_of_a_row_steps_and_whole_prompts_equal_the_cached_entry(layers: Layers) -> None:
    program = layers.program()
    feeds = [layers.feeds(past, tokens, capacity=capacity) for past, tokens, capacity in CASES]
    wanted = [evaluate(program.entries["decode"], feed) for feed in feeds]
    result = run_pass(UseGroupQueryAttention(), program, CUDA)
    assert result.changed == layers.layers, reasons(result)
    assert kinds(program)["Min"] == 1  # lengths are made once, for all layers
    for feed, expected in zip(feeds, wanted, strict=True):
        for in_place in (False, True):
            assert_like(layers, ort_decode(program, feed, in_place=in_place), expected, feed, 1e-5)
        assert_like(layers, evaluate(program.entries["decode"], feed), expected, feed, 1e-5)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("past", [[3, 0, 9], [0, 0, 0]])
def test_the_kernel_itself_refuses_several_tokens_of_several_rows(past: list[int]) -> None:
    layers = Layers()
    program = layers.program()
    run_pass(UseGroupQueryAttention(), program, CUDA)
    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1"):
        ort_decode(program, layers.feeds(past, 4))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_whole_pipeline_in_halves(precision: str, tmp_path: Path) -> None:
    layers = Layers(size=32, window=6)
    program = layers.program()
    program.entries["main"] = program.entries["decode"].clone()
    feeds = [layers.feeds(past, tokens, capacity=capacity) for past, tokens, capacity in CASES[:3]]
    wanted = [evaluate(program.entries["decode"], feed) for feed in feeds]
    lowered(program, CompileOptions(target=Target("cuda"), precision=precision))  # type: ignore[arg-type]
    found = kinds(program)
    assert found["GroupQueryAttention"] == 2 and not {"RotaryEmbedding", "ScatterElements"} & set(found)
    with WeightStore(tmp_path / "weights.bin") as weights:
        settings = OnnxRuntimeBackend().build(program, Target("cuda"), tmp_path, weights).settings
    assert settings[ROW_BY_ROW] == settings[IN_PLACE] == "1"
    state = next(v for v in program.entries["decode"].graph.inputs if v.name == "past_key_0")
    assert state.dtype == {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[precision]
    for feed, expected in zip(feeds, wanted, strict=True):
        narrow = {
            name: array.astype(state.dtype.numpy()) if name.startswith(("past_k", "past_v")) else array
            for name, array in feed.items()
        }
        got = evaluate(program.entries["decode"], narrow)
        assert_like(layers, got, expected, feed, HALF[precision])
        if precision == "fp16":  # the CPU has no kernel for bfloat16
            assert_like(layers, ort_decode(program, narrow), expected, feed, HALF[precision])


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (Layers(), "no CUDA kernel for FLOAT"),
        (Layers(size=264, hidden=64), "heads of up to 256, not of 264"),
        (Layers(alibi=True), "take no bias"),
    ],
)
def test_what_has_no_fused_kernel_is_expanded(
    layers: Layers, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "FLOAT" not in why:
        monkeypatch.setitem(gqa.DTYPES, "cuda", (ir.DataType.FLOAT,))
    program = layers.program()
    assert why in reasons(run_pass(UseGroupQueryAttention(), program, CUDA))
    lowered(program, CompileOptions(target=Target("cuda")))
    assert "GroupQueryAttention" not in kinds(program) and "CachedAttention" not in kinds(program)


@pytest.mark.usefixtures("float32")
def test_a_batch_that_is_fixed_is_expanded() -> None:
    program = Layers().program()
    lengths = next(v for v in program.entries["decode"].graph.inputs if v.name == "past_lengths")
    lengths.shape = ir.Shape([3])
    assert "row by row, and the program 3 rows" in reasons(run_pass(UseGroupQueryAttention(), program, CUDA))


def test_parts_of_a_mesh_keep_standard_operators() -> None:
    options = CompileOptions(target=Target("cuda"), precision="fp16")
    whole, parts = options, CompileOptions(target=Target("cuda"), precision="fp16", mesh=Mesh(pp=2))
    assert "group-query-attention" in {step.name for step in pipeline(whole)}
    assert "group-query-attention" not in {step.name for step in pipeline(parts)}


def lowered(program: Program, options: CompileOptions) -> None:
    backend = OnnxRuntimeBackend()
    context = PassContext(options.target, lambda node: backend.supports(node, options.target))
    for step in pipeline(options):
        step.run(program, context)
