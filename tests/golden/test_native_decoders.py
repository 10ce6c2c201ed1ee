"""Decoders of every family as native code: they generate what the source generates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.ir.evaluate import evaluate
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
from support.native_stepping import native_stepper
from support.numerics import scaled_error
from support.stepping import assert_steps_equal_whole, lowered

COUNT = 32
PROMPTS = [np.random.default_rng(3).integers(2, VOCABULARY, n).tolist() for n in (5, 17, 11)]
Arrays = Mapping[str, np.ndarray[Any, Any]]


def example(program: Program, entry: str) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of an entry: three rows, of which those over a cache hold different lengths."""
    random = np.random.default_rng(1)
    sizes: dict[str, int] = {"batch": 3, "tokens": 4, "capacity": 20, "selected": 2}
    made = {}
    for spec in program.inputs(entry):
        shape = [d if isinstance(d, int) else sizes.setdefault(str(d), 7) for d in spec.shape or ()]
        if spec.name == "past_lengths":
            array = np.array([3, 9, 0])
        elif spec.name == "select":
            array = np.array([[0, 3], [1, 2], [3, 3]])
        elif "mask" in spec.name:
            held = np.array([5, 7, 4]).reshape(3, *[1] * (len(shape) - 1))
            array = np.broadcast_to(np.arange(shape[-1]) < held, shape)
        elif "ids" in spec.name:
            array = random.integers(2, VOCABULARY, shape)
        else:
            array = random.standard_normal(shape)
        made[spec.name] = array.astype(spec.dtype.numpy())
    return made


def assert_lowered_alike(standard: Program, native: Program) -> None:
    """Every entry computes what it computed before it was lowered."""
    for entry in native.entries:
        inputs = example(native, entry)
        expected, got = (evaluate(p.entries[entry], inputs) for p in (standard, native))
        for name, array in expected.items():
            assert scaled_error(got[name], array) < 1e-5, f"{entry}: {name}"


def unlowered(program: Program) -> Program:
    """The same passes but the last, which bring it into a backend's operators."""
    from miaotui.compiler.options import CompileOptions
    from miaotui.passes.base import PassContext
    from miaotui.passes.pipeline import stages

    made = program.clone()
    for stage in stages(CompileOptions(backend="native")):
        if stage.required:
            break
        for step in stage.passes if stage.on else ():
            step.run(made, PassContext())
    return made


@pytest.mark.slow
@pytest.mark.parametrize("family", DECODERS)
def test_greedy_tokens_equal_the_source_s_own(family: str, tmp_path: Path) -> None:
    model = build(*DECODERS[family])
    source = imported(model)
    standard, program = unlowered(source), lowered(source, backend="native")
    assert_lowered_alike(standard, program)
    with native_stepper(program, tmp_path) as stepper:
        assert_steps_equal_whole(standard, stepper=stepper)
        assert stepper.greedy(PROMPTS[1:2], COUNT) == generated(model, PROMPTS[1:2], COUNT)
        assert stepper.greedy(PROMPTS, COUNT) == generated(model, PROMPTS, COUNT)


def sources(lengths: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(5)
    ids = random.integers(3, VOCABULARY, (len(lengths), max(lengths)))
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.slow
@pytest.mark.parametrize("family", TRANSLATORS)
def test_greedy_translations_equal_the_source_s_own(family: str, tmp_path: Path) -> None:
    model = build(*TRANSLATORS[family])
    source = imported(model)
    program = lowered(source, backend="native")
    assert_lowered_alike(unlowered(source), program)
    with native_stepper(program, tmp_path) as stepper:
        assert stepper.encode is not None
        for lengths in ((9,), (9, 4, 7)):
            given = sources(lengths)
            encoded = stepper.encode.run(given)
            made = stepper.greedy([[START]] * len(lengths), COUNT, extra=encoded)
            assert made == translated(model, given["input_ids"], given["attention_mask"], COUNT)
