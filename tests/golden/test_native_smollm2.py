"""SmolLM2's GGUF file as native code: the weights' own 4 and 8 bits, products in 8, a cache of float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from miaotui.driver.sample_text import with_sample_text
from miaotui.frontends.load import load
from support.models import smollm2_gguf
from support.native_stepping import native_stepper
from support.stepping import Array, lowered

LENGTH = 160
AGREEMENT = 0.96
"""Share of positions at which the most likely token is that of the weights multiplied in float32."""


def divergence(wanted: Array, got: Array) -> Array:
    """Kullback-Leibler divergence in nats at every position."""
    p, q = (x.astype(np.float64) - np.logaddexp.reduce(x, -1, keepdims=True) for x in (wanted, got))
    found: Array = (np.exp(p) * (p - q)).sum(-1)
    return found


@pytest.mark.slow
def test_tokens_agree_with_float32_and_every_path_with_the_others(tmp_path: Path) -> None:
    imported = load(smollm2_gguf())
    program = lowered(imported.program, backend="native")
    inputs = with_sample_text(imported.program, {"input_ids": np.zeros((2, LENGTH), np.int64)})
    ids = inputs["input_ids"]
    wanted = imported.reference.run({"input_ids": ids})["logits"]

    with native_stepper(program, tmp_path, threads=2) as stepper:
        stepper.start(2, capacity=LENGTH)
        assert {array.dtype for array in stepper.state.values()} == {np.dtype(np.float16)}
        rows = [row.tolist() for row in ids]
        logits, _ = stepper.step(rows, [list(range(LENGTH))] * 2)
        agreement = (logits.argmax(-1) == wanted.argmax(-1)).mean()
        assert agreement >= AGREEMENT, f"{agreement:.1%} of the tokens agree"
        assert divergence(wanted, logits).mean() < 0.01

        stepper.start(2, capacity=LENGTH)
        done, apart, same = 0, [], []
        for size in (40, 7, 1, 1, 1, 64, 1):
            part, _ = stepper.step([row[done : done + size] for row in rows])
            done += size
            apart.append(divergence(logits[:, done - 1], part[:, 0]))
            same.append(part[:, 0].argmax(-1) == logits[:, done - 1].argmax(-1))
        # rounding to 8 bits makes much of little: paths differ as much as each does from float32
        assert np.mean(apart) < 0.01
        assert np.mean(same) > 0.9
