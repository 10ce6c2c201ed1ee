"""factor-weights on an exported decoder: few bits and a cache behind it, both backends."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from miaotui.compiler.program import Program
from support.language_models import DECODERS, build, imported
from support.native_stepping import native_stepper
from support.stepping import Array, Stepper, assert_steps_equal_whole, lowered

pytest.importorskip("torch")
pytest.importorskip("transformers")

PROMPTS = [[7, 42, 250, 3, 3, 99], [120, 8, 15]]
FORCED = "factor-weights{rank=0.9,multiple=32,force=true,least=2048,keep=lm_head}"


@functools.cache
def source() -> Program:
    return imported(build(*DECODERS["llama"]))


def logits(stepper: Stepper) -> Array:
    stepper.start(len(PROMPTS))
    return stepper.step(PROMPTS)[0]


def test_decoding_equals_the_whole() -> None:
    program = lowered(source(), enable=(FORCED,))
    names = set(program.entries["decode"].graph.initializers)
    assert any(name.endswith("down_proj.weight.T.in") for name in names)
    assert_steps_equal_whole(program)


@pytest.mark.slow
def test_native_code_of_few_bits_follows(tmp_path: Path) -> None:
    program = lowered(source(), enable=(FORCED,))
    native = lowered(
        source(), enable=(FORCED, "quantize-weights{least=1024}"), backend="native", precision="int8"
    )
    wanted = logits(Stepper(program))
    with native_stepper(native, tmp_path) as stepper:
        error = np.abs(logits(stepper) - wanted).max() / np.abs(wanted).max()
    assert 1e-4 < error < 0.05
