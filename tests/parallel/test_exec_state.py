"""Decoding over stages and ranks: the state lies in them, and the caller drives it as if it were its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from miaotui.compiler.errors import InputError
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.parallel.options import ParallelOptions
from miaotui.runtime.parallel.runner import ParallelModel, ParallelRunner
from miaotui.runtime.stepwise import StepwiseRunner
from support.stateful_plans import (
    DECODING,
    SIGNATURE,
    VOCABULARY,
    run_whole,
    write_greedily,
    write_stateful_plan,
)

PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9]]


@contextmanager
def opened(folder: Path, mesh: Mesh, executor: str = "threads") -> Iterator[ParallelRunner]:
    write_stateful_plan(folder, mesh)
    model = ParallelModel(folder, SIGNATURE, "decode", DECODING, options=ParallelOptions.parse(executor))
    with model.open(1) as runner:
        yield runner


@pytest.mark.parametrize("mesh", [Mesh(1, 2, 1), Mesh(2, 2, 1), Mesh(1, 2, 2), Mesh(3, 2, 2)], ids=str)
def test_rows_are_continued_as_each_would_be_alone(tmp_path: Path, mesh: Mesh) -> None:
    with opened(tmp_path, mesh) as runner:
        decoder = Decoder(runner, DECODING, rows=3)
        for row, prompt in enumerate(PROMPTS):
            decoder.prefill(row, prompt, chunk=4)
        written: list[list[int]] = [[], [], []]
        for _ in range(70):  # beyond the first capacity
            for row in range(3):
                written[row].append(int(decoder.tokens[row, 0]))
            decoder.step()
        assert decoder.capacity > 64
        for row, prompt in enumerate(PROMPTS):
            assert written[row] == write_greedily(prompt, 70)
            wanted = run_whole([*prompt, *written[row]])[-1]
            np.testing.assert_allclose(decoder.logits[row], wanted, rtol=1e-3, atol=1e-4)


def test_rows_that_end_are_dropped_from_the_state_of_their_replica(tmp_path: Path) -> None:
    with opened(tmp_path, Mesh(2, 2, 1)) as runner:
        decoder = Decoder(runner, DECODING, rows=3)
        decoder.prefill_together(PROMPTS)
        decoder.step()
        decoder.keep([0, 2])
        first = decoder.tokens[:, 0].tolist()
        decoder.step()
        second = decoder.tokens[:, 0].tolist()
        for place, row in enumerate((0, 2)):
            assert write_greedily(PROMPTS[row], 3)[1:] == [first[place], second[place]]


def test_a_draft_that_is_rejected_is_written_over(tmp_path: Path) -> None:
    with opened(tmp_path, Mesh(1, 2, 2)) as runner:
        decoder = Decoder(runner, DECODING)
        decoder.prefill(0, PROMPTS[0])
        decoder.extend([7, 7, 7])
        logits, _ = decoder.extend([8, 2])
        np.testing.assert_allclose(logits, run_whole([*PROMPTS[0], 8, 2])[-2:], rtol=1e-3, atol=1e-4)


def test_runs_with_arrays_give_back_state_that_the_next_run_takes(tmp_path: Path) -> None:
    with opened(tmp_path, Mesh(2, 2, 2)) as runner:
        ids = np.random.default_rng(0).integers(0, VOCABULARY, (3, 11))
        found = StepwiseRunner(DECODING, runner).logits({"input_ids": ids})
        for row in range(3):
            np.testing.assert_allclose(found[row], run_whole(ids[row].tolist()), rtol=1e-3, atol=1e-4)


def test_state_that_no_run_gave_back_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, Mesh(1, 2, 1)) as runner:
        zeros = {
            spec.name: np.zeros(
                [d if isinstance(d, int) else 1 for d in spec.shape or ()], spec.dtype.numpy()
            )
            for spec in SIGNATURE.inputs
        }
        with pytest.raises(InputError, match="keeps its state in its ranks"):
            runner.run({**zeros, "past_lengths": np.ones(1, np.int64)})
