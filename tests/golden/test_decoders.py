"""Decoders of every family: the derived cache generates what the source generates."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

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
from support.native_stepping import assert_lowered_alike, native_stepper, unlowered
from support.rewriting import ort_run
from support.stepping import Stepper, assert_steps_equal_whole, lowered

COUNT = 20
BACKENDS = ("ort", "native")
PROMPTS = [np.random.default_rng(3).integers(2, VOCABULARY, n).tolist() for n in (5, 17, 11)]


@dataclass(frozen=True)
class Source:
    """A model as it was imported, and what it writes itself behind prompts or sources, by their number."""

    program: Program
    written: Mapping[int, list[list[int]]]


@cache
def decoder(family: str) -> Source:
    model = build(*DECODERS[family])
    written = {len(prompts): generated(model, prompts, COUNT) for prompts in (PROMPTS[1:2], PROMPTS)}
    return Source(imported(model), written)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", DECODERS)
def test_greedy_tokens_equal_the_source_s_own(family: str, backend: str, tmp_path: Path) -> None:
    source = decoder(family)
    program = lowered(source.program, backend=backend)
    assert program.decoding is not None and program.decoding.vocabulary == VOCABULARY
    with ExitStack() as stack:
        if backend == "native":
            standard = unlowered(source.program)
            assert_lowered_alike(standard, program)
            stepper: Stepper = stack.enter_context(native_stepper(program, tmp_path))
            assert_steps_equal_whole(standard, stepper=stepper)
        else:
            stepper = Stepper(program)
            assert_steps_equal_whole(program)
        for prompts in (PROMPTS[1:2], PROMPTS):
            assert stepper.greedy(prompts, COUNT) == source.written[len(prompts)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bloom", "gemma2", "gpt2", "llama", "mistral", "opt"])
def test_the_generic_lowering_steps_like_the_whole_model(family: str) -> None:
    program = decoder(family).program
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


LENGTHS = ((9,), (9, 4, 7))


@cache
def translator(family: str) -> Source:
    model = build(*TRANSLATORS[family])
    written = {}
    for lengths in LENGTHS:
        given = sources(lengths)
        made = translated(model, given["input_ids"], given["attention_mask"], COUNT)
        written[len(lengths)] = made
    return Source(imported(model), written)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", TRANSLATORS)
def test_greedy_translations_equal_the_source_s_own(family: str, backend: str, tmp_path: Path) -> None:
    source = translator(family)
    program = lowered(source.program, backend=backend)
    assert program.decoding is not None
    assert program.decoding.encoder == "encode" and program.decoding.encoder_inputs == ("attention_mask",)
    with ExitStack() as stack:
        if backend == "native":
            assert_lowered_alike(unlowered(source.program), program)
            native = stack.enter_context(native_stepper(program, tmp_path))
            assert native.encode is not None
            stepper: Stepper = native
            encode = native.encode.run
        else:
            stepper = Stepper(program)
            encode = partial(ort_run, Program({"main": program.entries["encode"]}))
        for lengths in LENGTHS:
            encoded = encode(sources(lengths))
            made = stepper.greedy([[START]] * len(lengths), COUNT, extra=encoded)
            assert made == source.written[len(lengths)]
