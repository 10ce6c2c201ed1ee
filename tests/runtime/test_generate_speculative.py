"""Prompt-lookup drafts: the same text, in fewer steps where it repeats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from miaotui.runtime.executable import Executable, open_executable
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.generate.speculative import PromptLookup
from support.decoders import Attention, Tiny, write_decoder

REPEATING = list(b"one two three, one two three, one two three, one two")


@pytest.fixture(params=["gqa", "standard"])
def executable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Executable]:
    attention: Attention = request.param
    write_decoder(tmp_path / "m", Tiny(attention, context=256))
    with open_executable(tmp_path / "m") as opened:
        yield opened


@pytest.mark.parametrize("drafted", [1, 2, 5, 16, 64])
def test_the_text_is_that_of_plain_greedy(executable: Executable, drafted: int) -> None:
    for prompt in (REPEATING, list(b"nothing twice"), [7] * 30):
        plain = executable.generate(prompt, max_tokens=80)
        made = executable.generate(prompt, max_tokens=80, speculate=drafted)
        assert made.ids == plain.ids
        assert made.timings.new_tokens == 80


def test_drafts_save_steps_on_text_that_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # without positions the decoder falls into a loop, as language models do
    tiny = Tiny(positions=0.0, context=256)
    write_decoder(tmp_path / "m", tiny)
    runs: list[int] = []
    with open_executable(tmp_path / "m") as executable:
        plain = executable.generate(REPEATING, max_tokens=100)
        step, extend = Decoder.step, Decoder.extend
        monkeypatch.setattr(Decoder, "step", lambda self: (runs.append(1), step(self))[1])
        monkeypatch.setattr(Decoder, "extend", lambda self, ids: (runs.append(1), extend(self, ids))[1])
        made = executable.generate(REPEATING, max_tokens=100, speculate=8)
    assert made.ids == plain.ids
    assert len(set(plain.ids[-20:])) < 12, "the text repeats"
    assert len(runs) < 60
    assert made.timings.accepted > 40
    assert made.timings.acceptance is not None and made.timings.acceptance > 0.5
    assert "drafted tokens accepted" in str(made.timings)
    assert plain.timings.acceptance is None


def test_drafts_end_at_the_end_token_and_at_max_tokens(executable: Executable) -> None:
    plain = executable.generate(REPEATING, max_tokens=33)
    assert len(executable.generate(REPEATING, max_tokens=33, speculate=16).ids) == 33
    for count in range(1, 12):
        made = executable.generate(REPEATING, max_tokens=count, speculate=16)
        assert made.ids == plain.ids[:count]


def test_a_list_of_prompts_is_speculated_one_by_one(executable: Executable) -> None:
    plain = executable.generate([REPEATING, REPEATING[:9]], max_tokens=30)
    made = executable.generate([REPEATING, REPEATING[:9]], max_tokens=30, speculate=4)
    assert [g.ids for g in made] == [g.ids for g in plain]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_a_draft_follows_an_earlier_occurrence_of_the_last_tokens(tokens: list[int], longest: int) -> None:
    draft = PromptLookup(tokens, longest).draft()
    if not draft:
        assert not any(tokens[i : i + 2] == tokens[-2:] for i in range(len(tokens) - 2)) or len(tokens) < 3
        return
    assert len(draft) <= longest
    assert any(
        tokens[at - 2 : at] == tokens[-2:] and tokens[at : at + len(draft)] == draft
        for at in range(2, len(tokens))
    )


def test_drafts_grow_while_they_are_right_and_shrink_when_not() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], 8)
    lengths = [len(lookup.draft())]
    lookup.learn(4, 4)
    lengths.append(len(lookup.draft()))
    for _ in range(3):
        lookup.learn(8, 0)
    lengths.append(len(lookup.draft()))
    assert lengths == [4, 8, 1]
