"""Decoders of every family: the derived cache generates what the source generates."""

from __future__ import annotations

import numpy as np
import pytest
from miaotui.compiler.program import Program
from support.language_models import (
    DECODERS,
    START,
    TRANSLATORS,
    VOCABULARY,
    build,
    generated,
    imported,
    translated,
)
from support.rewriting import ort_run
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


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bloom", "gpt2", "llama", "mistral", "opt"])
def test_exports_with_mask_and_positions_get_the_same_cache(family: str) -> None:
    others = ["attention_mask"] if family == "bloom" else ["attention_mask", "position_ids"]
    program = lowered(imported(build(*DECODERS[family]), *others))
    assert {"attention_mask", "position_ids"}.isdisjoint(spec.name for spec in program.inputs("decode"))
    assert_steps_equal_whole(program)


def sources(lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    ids = random.integers(3, VOCABULARY, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.slow
@pytest.mark.parametrize("family", TRANSLATORS)
def test_greedy_translations_equal_the_source_s_own(family: str) -> None:
    model = build(*TRANSLATORS[family])
    program = lowered(imported(model))
    assert program.decoding is not None
    assert program.decoding.encoder == "encode" and program.decoding.encoder_inputs == ("attention_mask",)
    encode = Program({"main": program.entries["encode"]})
    stepper = Stepper(program)
    for lengths in ((9,), (9, 4, 7)):
        given = sources(lengths)
        encoded = ort_run(encode, given)
        made = stepper.greedy([[START]] * len(lengths), COUNT, extra=encoded)
        assert made == translated(model, given["input_ids"], given["attention_mask"], COUNT)
