"""SmolLM2's GGUF file as native code: the weights' own 4 and 8 bits, products in 8, a cache of float16."""

from __future__ import annotations

import miaotui
import numpy as np
import pytest
from miaotui.runtime.native import NativeRunner
from miaotui.runtime.session import open_runner
from support.native_stepping import NativeStepper
from support.smollm2 import LENGTH, smollm2_native
from support.stepping import Array

AGREEMENT = 0.96
"""Share of positions at which the most likely token is that of the weights multiplied in float32."""


def divergence(wanted: Array, got: Array) -> Array:
    """Kullback-Leibler divergence in nats at every position."""
    p, q = (x.astype(np.float64) - np.logaddexp.reduce(x, -1, keepdims=True) for x in (wanted, got))
    found: Array = (np.exp(p) * (p - q)).sum(-1)
    return found


@pytest.mark.slow
def test_tokens_agree_with_float32_and_every_path_with_the_others() -> None:
    folder = smollm2_native()
    ids, wanted = np.load(folder / "ids.npy"), np.load(folder / "logits.npy")
    with miaotui.open(folder / "smollm2.miaotui") as executable:
        decoding = executable.manifest.decoding
        assert decoding is not None
        runner = open_runner(executable._artifact, entry=decoding.entry, threads=2)
        assert isinstance(runner, NativeRunner)
        with runner:
            stepper = NativeStepper(decoding, runner)
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
