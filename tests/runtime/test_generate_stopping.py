"""Stop texts: found across pieces, never shown in part, wherever the pieces are cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from miaotui.runtime.executable import Executable, open_executable
from miaotui.runtime.generate.stopping import StopTexts
from support.decoders import Tiny, write_decoder

PROMPT = "Once upon a time"


def through(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    texts = StopTexts(stops)
    shown = "".join(texts.push(piece) for piece in pieces)
    return shown + texts.flush(), texts.found


@given(st.lists(st.text("abc", max_size=4), max_size=12), st.lists(st.text("abc", min_size=1, max_size=5)))
def test_the_text_is_cut_before_the_first_stop_text(pieces: list[str], stops: list[str]) -> None:
    text, found = through(pieces, stops)
    whole = "".join(pieces)
    places = {stop: whole.find(stop) for stop in stops if stop in whole}
    if not places:
        assert (text, found) == (whole, None)
        return
    assert found in places
    # with pieces of one character the stop text that is complete first wins
    assert text == whole[: places[found]]
    ends = min(place + len(stop) for stop, place in places.items())
    assert all(stop not in text for stop in stops)
    assert len(text) <= ends


@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4)))
def test_what_is_shown_is_never_taken_back(pieces: list[str], stops: list[str]) -> None:
    texts, shown = StopTexts(stops), ""
    final, _ = through(pieces, stops)
    for piece in pieces:
        shown += texts.push(piece)
        assert final.startswith(shown)


def test_nothing_is_held_back_that_can_not_become_a_stop_text() -> None:
    texts = StopTexts(["<end>"])
    assert texts.push("a < b, <e") == "a < b, "
    assert texts.push("asy>") == "<easy>"
    assert StopTexts([]).push("<end>") == "<end>"


@pytest.fixture
def executable(tmp_path: Path) -> Iterator[Executable]:
    write_decoder(tmp_path / "m", Tiny())
    with open_executable(tmp_path / "m") as opened:
        yield opened


def test_generation_ends_before_a_stop_text_that_spans_tokens(executable: Executable) -> None:
    whole = executable.generate(PROMPT, max_tokens=60).text
    for at in range(2, len(whole) - 4, 7):
        stop = whole[at : at + 3]
        made = executable.generate(PROMPT, max_tokens=60, stop=[stop, "never in there"])
        assert made.text == whole[: whole.find(stop)]
        assert (made.finish_reason, made.stop) == ("stop", stop)
        assert "".join(executable.stream(PROMPT, max_tokens=60, stop=stop)) == made.text
        assert executable.generate(PROMPT, max_tokens=60, stop=stop, speculate=5).text == made.text


def test_a_beginning_of_a_stop_text_at_the_end_is_text(executable: Executable) -> None:
    whole = executable.generate(PROMPT, max_tokens=20).text
    made = executable.generate(PROMPT, max_tokens=20, stop=whole[-1] + "xyz")
    assert (made.text, made.finish_reason, made.stop) == (whole, "length", None)
