"""Sampling: every step equals transformers' own processor; draws follow the distribution and the seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.errors import ArtifactError, CompileError
from miaotui.compiler.reference import Array
from miaotui.runtime.executable import Executable, open_executable
from miaotui.runtime.generate.defaults import Defaults
from miaotui.runtime.generate.options import GenerationOptions, Policy
from miaotui.runtime.generate.sampling import (
    Sampler,
    log_softmax,
    min_p_kept,
    penalized,
    softmax,
    top_k_kept,
    top_p_kept,
)
from support.decoders import Tiny, write_decoder

IDS = list(b"the cat and the dog and the")
VOCABULARY = 997


def scores_of(seed: int, spread: float = 3.0) -> Array:
    scores = np.random.default_rng(seed).standard_normal(VOCABULARY).astype(np.float32) * spread
    scores[seed % 7 :: 50] = scores[seed % 7]  # some are equal
    return scores


def processed(processor: Any, scores: Array, ids: list[int] | None = None) -> Array:
    torch = pytest.importorskip("torch")
    made = processor(torch.tensor([ids or [0]]), torch.tensor(scores[None].copy()))
    return np.asarray(made[0].numpy())


@pytest.fixture
def processors() -> Any:
    return pytest.importorskip("transformers").generation.logits_process


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 2, 40, 996, 997, 5000])
def test_top_k_equals_transformers(processors: Any, seed: int, k: int) -> None:
    scores = scores_of(seed)
    expected = processed(processors.TopKLogitsWarper(k), scores) > -np.inf
    np.testing.assert_array_equal(top_k_kept(scores, k), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("p", [1e-4, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_top_p_equals_transformers(processors: Any, seed: int, p: float, spread: float) -> None:
    scores = np.random.default_rng(seed).standard_normal(VOCABULARY).astype(np.float32) * spread
    expected = processed(processors.TopPLogitsWarper(p), scores) > -np.inf
    kept = top_p_kept(scores, p)
    different = np.flatnonzero(kept != expected)
    # sums of a thousand float32 differ in the last digits: at most the token on the border may differ
    assert len(different) <= 1 and (not len(different) or spread == 0.3)
    assert kept[scores.argmax()]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("p", [1e-4, 0.05, 0.5, 1.0])
def test_min_p_equals_transformers(processors: Any, seed: int, p: float) -> None:
    scores = scores_of(seed)
    expected = processed(processors.MinPLogitsWarper(p), scores) > -np.inf
    np.testing.assert_array_equal(min_p_kept(scores, p), expected)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_repetition_penalty_equals_transformers(processors: Any, penalty: float) -> None:
    scores, ids = scores_of(0), [3, 5, 5, 900, 3]
    expected = processed(processors.RepetitionPenaltyLogitsProcessor(penalty), scores, ids)
    np.testing.assert_allclose(penalized(scores, np.unique(ids), penalty), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_whole_chain_equals_transformers(processors: Any, seed: int) -> None:
    """The same distribution: what both would draw from, token for token."""
    scores, ids = scores_of(seed), [1, 2, 3, 500, 2]
    chain = [
        processors.RepetitionPenaltyLogitsProcessor(1.2),
        processors.TemperatureLogitsWarper(0.7),
        processors.TopKLogitsWarper(60),
        processors.TopPLogitsWarper(0.9),
        processors.MinPLogitsWarper(0.02),
    ]
    expected = scores
    for processor in chain:
        expected = processed(processor, expected, ids)
    policy = Policy(
        repetition_penalty=1.2, temperature=0.7, top_k=60, top_p=0.9, min_p=0.02, seed=seed, max_tokens=9
    )
    sampler = Sampler(policy, VOCABULARY, ids)
    draws = np.array([sampler.choose(scores) for _ in range(4000)])
    probabilities = softmax(expected)
    assert set(draws.tolist()) <= set(np.flatnonzero(probabilities).tolist())
    found = np.bincount(draws, minlength=VOCABULARY) / len(draws)
    np.testing.assert_allclose(found, probabilities, atol=0.03)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_repeat_ngram_equals_transformers(processors: Any, size: int) -> None:
    ids = [1, 2, 3, 1, 2, 4, 1, 2]
    scores = scores_of(0)
    expected = processed(processors.NoRepeatNGramLogitsProcessor(size), scores, ids)
    sampler = Sampler(Policy(no_repeat_ngram=size), VOCABULARY, ids[:3])
    for token in ids[3:]:
        sampler.push(token)
    np.testing.assert_array_equal(sampler._processed(scores), expected)


def test_forced_and_suppressed_tokens() -> None:
    scores = np.arange(10, dtype=np.float32)
    sampler = Sampler(
        Policy(forced_bos=3, forced_eos=1, suppress=(9,), begin_suppress=(8,), max_tokens=4), 10, [0]
    )
    chosen = []
    for _ in range(4):
        chosen.append(sampler.choose(scores))
        sampler.push(chosen[-1])
    assert chosen == [3, 7, 8, 1]


def test_log_softmax_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    scores = scores_of(2, 50.0)
    np.testing.assert_allclose(log_softmax(scores), torch.tensor(scores).double().log_softmax(-1), rtol=1e-9)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    sampler = Sampler(Policy(temperature=1.0), 4, [0])
    with pytest.raises(CompileError, match="not finite"):
        sampler.choose(np.array([0, np.nan, 1, 2], np.float32))


def test_a_tiny_temperature_is_greedy() -> None:
    sampler = Sampler(Policy(temperature=1e-30), VOCABULARY, [0])
    scores = np.random.default_rng(0).standard_normal(VOCABULARY).astype(np.float32)
    assert sampler.choose(scores) == scores.argmax()


@pytest.fixture
def executable(tmp_path: Path) -> Any:
    write_decoder(tmp_path / "m", Tiny(scale=0.3))
    with open_executable(tmp_path / "m") as opened:
        yield opened


Sampled = Callable[..., Any]


def test_a_seed_makes_draws_repeatable(executable: Executable) -> None:
    def draw(seed: int | None) -> tuple[int, ...]:
        ids: tuple[int, ...] = executable.generate(IDS, max_tokens=20, temperature=2.0, seed=seed).ids
        return ids

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) == 5
    assert len({draw(None) for _ in range(5)}) > 1


def test_rows_of_a_batch_draw_by_themselves_whatever_runs_beside_them(executable: Executable) -> None:
    options = {"max_tokens": 12, "temperature": 2.0, "top_k": 50, "seed": 5}
    batch = [g.ids for g in executable.generate([IDS] * 4, **options)]
    assert len(set(batch)) == 4
    assert [g.ids for g in executable.generate([IDS] * 4, rows=1, **options)] == batch
    assert executable.generate(IDS, **options).ids == batch[0]


def test_speculation_changes_no_draw(executable: Executable) -> None:
    for seed in range(4):
        options = {"max_tokens": 40, "temperature": 0.5, "repetition_penalty": 1.1, "seed": seed}
        assert executable.generate(IDS, speculate=6, **options).ids == executable.generate(IDS, **options).ids


def test_repetition_penalty_counts_prompt_and_text(executable: Executable, processors: Any) -> None:
    tiny = Tiny(scale=0.3)
    expected: list[int] = []
    for _ in range(15):
        ids = [*IDS, *expected]
        scores = tiny.logits(ids)[-1].astype(np.float32)
        made = processed(processors.RepetitionPenaltyLogitsProcessor(1.4), scores, ids)
        expected.append(int(made.argmax()))
    assert list(executable.generate(IDS, max_tokens=15, repetition_penalty=1.4).ids) == expected


def test_greedy_is_the_default_whatever_the_config_samples_with() -> None:
    defaults = Defaults.of({"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1})
    greedy = GenerationOptions().resolved(defaults)
    assert (greedy.temperature, greedy.top_k, greedy.repetition_penalty) == (0.0, 0, 1.1)
    sampling = GenerationOptions(temperature=1.0).resolved(defaults)
    assert (sampling.temperature, sampling.top_k) == (1.0, 20)
    assert GenerationOptions(temperature=1.0, top_k=5).resolved(defaults).top_k == 5


def test_generation_config_is_read_as_transformers_writes_it() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GenerationConfig(
        eos_token_id=[2, 7], max_new_tokens=5, top_p=0.9, forced_eos_token_id=2, bad_words_ids=[[3], [4, 5]],
        suppress_tokens=[1], no_repeat_ngram_size=3,
    )  # fmt: skip
    found = Defaults.of(config.to_dict())
    assert (found.eos, found.max_tokens, found.top_p) == ((2, 7), 5, 0.9)
    assert (found.forced_eos, found.suppress, found.no_repeat_ngram) == (2, (1, 3), 3)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"eos_token_id": "a"}', '{"top_k": 1.5}', '{"top_p": true}',
             '{"bad_words_ids": [1]}', '{"eos_token_id": [-1]}', '{"max_new_tokens": []}', "[" * 100_000]
)  # fmt: skip
def test_a_damaged_generation_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"generation_config\.json"):
        Defaults.of_folder(tmp_path)
