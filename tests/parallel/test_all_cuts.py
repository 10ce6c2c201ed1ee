"""Random cuts of random graphs, and decoders step by step: bit for bit what they are in one piece.

A sample; all with MIAOTUI_WHOLE_SUITE=1. Golden models are cut in ``tests/golden/test_golden_models.py``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.ir.examples import example_inputs
from miaotui.compiler.ir.shapes import infer_shapes
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.sharding import set_stage
from miaotui.compiler.program import Program
from miaotui.driver.context import context_of
from miaotui.driver.meshes import most_stages
from miaotui.driver.partition import write_staged
from miaotui.passes.observers import run_pipeline
from miaotui.passes.partition.pipeline import chain_of
from miaotui.passes.pipeline import pipeline
from miaotui.runtime.stepwise import StepwiseRunner
from support.cuts import WHOLE_SUITE, Cut, Plain, same
from support.language_models import DECODERS, TRANSLATORS, build, imported
from support.numerics import run_ort
from support.random_graphs import grow

GRAPHS = 100 if WHOLE_SUITE else 12
FAMILIES = [*DECODERS, *TRANSLATORS] if WHOLE_SUITE else ["llama"]
STAGES = range(2, 9) if WHOLE_SUITE else (3,)


@pytest.mark.parametrize("seed", range(GRAPHS))
def test_random_cuts_of_random_graphs_equal_the_whole(seed: int, tmp_path: Path) -> None:
    choice = random.Random(seed)
    program = grow(seed, 14)
    inputs = example_inputs(program, sizes={"batch": 3})
    wanted = run_ort(program.main, inputs)
    infer_shapes(program)
    nodes = list(program.main.graph)
    stages = choice.randint(1, min(8, len(nodes)))
    starts = sorted(choice.sample(range(1, len(nodes)), stages - 1))
    for place, node in enumerate(nodes):
        set_stage(node, sum(start <= place for start in starts))
    plan = write_staged(program, Mesh(pp=stages), Plain(), Target(), tmp_path)
    same(Cut(program, tmp_path, plan.entries["main"]).run(inputs), wanted)


@cache
def decoder(family: str) -> Program:
    program = imported(build(*(DECODERS.get(family) or TRANSLATORS[family])))
    options = CompileOptions(backend="ort")
    run_pipeline(program, pipeline(options), context_of(options), [])
    return program


@pytest.mark.parametrize("stages", STAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_of_a_decoder_in_stages_equal_those_of_the_whole(
    family: str, stages: int, tmp_path: Path
) -> None:
    program = decoder(family)
    assert program.decoding is not None
    inputs = example_inputs(program, sizes={"batch": 3}, seed=1)
    whole = Cut.write(program, Mesh(), tmp_path / "whole")
    stages = min(stages, most_stages(chain_of(program, program.decoding.entry)))
    parts = Cut.write(program, Mesh(pp=stages), tmp_path / "parts")
    same(parts.run(inputs), whole.run(inputs))
    same({"logits": steps(parts, inputs)}, {"logits": steps(whole, inputs)})


def steps(cut: Cut, inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Logits of a prompt, a chunk and single tokens, with state in the ranks."""
    decoding = cut.program.decoding
    assert decoding is not None
    encode = None if decoding.encoder is None else cut.open(decoding.encoder)
    with StepwiseRunner(decoding, cut.open(decoding.entry), encode) as runner:
        found: np.ndarray[Any, Any] = runner.logits(dict(inputs))
        return found
