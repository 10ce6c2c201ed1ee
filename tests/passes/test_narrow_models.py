"""Heads of exported transformers made narrower: where weights reach half their channels nothing is lost."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.raising import RAISING
from miaotui.passes.sparsity import NarrowHeads
from support.language_models import BERT, DECODERS, TRANSLATORS, build, imported
from support.native_stepping import example, native_stepper
from support.rewriting import assert_same, reasons, run_pass
from support.stepping import Stepper, assert_steps_equal_whole, lowered

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

SIZE = 16
"""Channels of every head."""

PROMPTS = [[7, 42, 250, 3, 3, 99], [120, 8, 15]]
FAMILIES: dict[str, Any] = {**DECODERS, **TRANSLATORS, "bert": BERT}
PROJECTIONS = re.compile(r"(query|key|value|q_proj|k_proj|v_proj|qkv_proj|c_attn|query_key_value|\.[qkv])$")


@functools.cache
def source(family: str) -> Program:
    """Imported, with every query, key and value in half of its head's channels; leave it as it is."""
    model, rng = build(*FAMILIES[family]), np.random.default_rng(3)
    with torch.no_grad():
        for name, module in model.named_modules():
            if not PROJECTIONS.search(name):
                continue
            weight = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
            for start in range(0, len(weight), SIZE):
                basis = np.linalg.qr(rng.standard_normal((SIZE, SIZE // 2)))[0]
                onto = torch.from_numpy(basis @ basis.T).to(weight.dtype)
                weight[start : start + SIZE] = onto @ weight[start : start + SIZE]
                if getattr(module, "bias", None) is not None:
                    module.bias[start : start + SIZE] = onto @ module.bias[start : start + SIZE]
    return imported(model)


@functools.cache
def raised(family: str) -> Program:
    program = source(family).clone()
    for step in (*CLEANUP, *RAISING, *CLEANUP):
        step.run(program, PassContext())
    return program


def attentions(program: Program) -> int:
    return sum(node.op_type == "Attention" for node in program.main.graph)


@pytest.mark.parametrize(
    ("family", "alone"),
    [
        *((family, False) for family in ("bert", "gpt2", "opt", "bart", "t5-gated")),
        *((family, True) for family in ("llama", "qwen2", "qwen3", "phi3", "gpt-neox")),
    ],
)
def test_half_of_the_channels_are_as_good(family: str, alone: bool) -> None:
    program = raised(family).clone()
    result = run_pass(NarrowHeads(share=0.5, values_alone=alone), program)
    assert result.changed == attentions(program) > 0, reasons(result)
    assert all(("keys stay" in hit.text) == alone for hit in result.hits)
    case = example(program, "main")
    assert_same(evaluate(raised(family).main, case), evaluate(program.main, case), 2e-2)
    cruder = raised(family).clone()
    run_pass(NarrowHeads(share=0.75, values_alone=alone, multiple=4), cruder)
    with pytest.raises(AssertionError, match="scaled error"):
        assert_same(evaluate(raised(family).main, case), evaluate(cruder.main, case), 5e-2)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_rotary_heads_stay_where_kernels_want_one_size(family: str) -> None:
    result = run_pass(NarrowHeads(share=0.5), raised(family).clone())
    assert not result.changed
    assert len(result.declined) == attentions(raised(family))
    assert "turns them in pairs" in reasons(result)


@pytest.mark.parametrize("family", ["bloom", "falcon-new"])
def test_heads_that_lie_along_one_axis_stay(family: str) -> None:
    result = run_pass(NarrowHeads(share=0.5, values_alone=True), raised(family).clone())
    assert not result.changed
    assert len(result.declined) == attentions(raised(family))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_the_cache_is_as_narrow(family: str) -> None:
    program = lowered(source(family), sparsity="channels:0.5")
    assert program.decoding is not None
    shapes = Stepper(program).shapes
    assert all(shapes[tensor.input][3] == SIZE // 2 for tensor in program.decoding.state)
    assert_steps_equal_whole(program)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_native_code_follows(family: str, tmp_path: Path) -> None:
    whole = lowered(source(family))
    step = "narrow-heads{share=0.5,values_alone=true}"
    program = lowered(source(family), backend="native", enable=(step,))
    assert program.decoding is not None
    with native_stepper(program, tmp_path) as stepper:
        widths = {stepper.shapes[tensor.input][3] for tensor in program.decoding.state}
        assert widths == ({8} if family == "gpt2" else {8, 16})
        found = []
        for one in (Stepper(whole), stepper):
            one.start(len(PROMPTS))
            found.append(one.step(PROMPTS)[0])
    assert np.abs(found[0] - found[1]).max() / np.abs(found[0]).max() < 2e-2
