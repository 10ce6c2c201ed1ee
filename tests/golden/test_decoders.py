"""Decoders of every family: the derived cache generates what the source generates."""

from __future__ import annotations

import numpy as np
import pytest
from support.language_models import DECODERS, VOCABULARY, build, generated, imported
from support.stepping import Stepper, assert_steps_equal_whole, lowered

COUNT = 32
PROMPTS = [np.random.default_rng(3).integers(2, VOCABULARY, n).tolist() for n in (5, 17, 11)]


@pytest.mark.slow
@pytest.mark.parametrize("family", DECODERS)
def test_greedy_tokens_equal_the_source_s_own(family: str) -> None:
    model = build(*DECODERS[family])
    program = lowered(imported(model))
    assert program.decoding is not None and program.decoding.vocabulary == VOCABULARY
    assert_steps_equal_whole(program)
    stepper = Stepper(program)
    assert stepper.greedy(PROMPTS[1:2], COUNT) == generated(model, PROMPTS[1:2], COUNT)
    assert stepper.greedy(PROMPTS, COUNT) == generated(model, PROMPTS, COUNT)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bloom", "gemma2", "gpt2", "llama", "mistral", "opt"])
def test_the_generic_lowering_steps_like_the_whole_model(family: str) -> None:
    program = imported(build(*DECODERS[family]))
    assert_steps_equal_whole(lowered(program, disable=("group-query-attention",)))
