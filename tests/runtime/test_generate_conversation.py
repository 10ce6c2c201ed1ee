"""Conversations: the template's text, and no token run twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from miaotui.compiler.errors import InputError, ModelError, OptionError
from miaotui.runtime.executable import Executable, open_executable
from miaotui.runtime.generate.decoder import Decoder
from support.decoders import Tiny, write_decoder

TINY = Tiny(context=400)


@pytest.fixture
def executable(tmp_path: Path) -> Iterator[Executable]:
    write_decoder(tmp_path / "m", TINY, config={"eos_token_id": 256})
    with open_executable(tmp_path / "m") as opened:
        yield opened


def rendered(*messages: tuple[str, str]) -> list[int]:
    marks = {"user": 258, "assistant": 259, "system": 260}
    ids: list[int] = []
    for role, text in messages:
        ids += [marks[role], *text.encode(), *([256] if role == "assistant" else [])]
    return [*ids, 259]


def test_answers_equal_those_without_a_cache(executable: Executable) -> None:
    chat = executable.chat("Be brief.", max_tokens=12)
    said: list[tuple[str, str]] = [("system", "Be brief.")]
    for question in ("Hello?", "Who are you?", "Why?"):
        said.append(("user", question))
        answer = chat.ask(question)
        assert list(answer.ids) == TINY.greedy(rendered(*said), 12, (256,))
        said.append(("assistant", answer.text))
    assert [(m["role"], m["content"]) for m in chat.messages] == said


def test_only_what_is_new_is_run(executable: Executable, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[int] = []
    prefill = Decoder.prefill

    def counted(self: Decoder, row: int, ids: list[int], chunk: int) -> None:
        run.append(len(ids))
        prefill(self, row, ids, chunk)

    monkeypatch.setattr(Decoder, "prefill", counted)
    chat = executable.chat(max_tokens=10)
    first = chat.ask("a long question to begin with")
    second = chat.ask("more?")
    assert first.timings.cached_tokens == 0
    # question, answer mark and answer are held, up to the first byte that is not the text's own
    assert second.timings.cached_tokens >= first.prompt_tokens
    assert run == [first.prompt_tokens, second.prompt_tokens - second.timings.cached_tokens]
    again = chat.ask("more?")
    assert again.timings.cached_tokens >= second.prompt_tokens


def test_reset_and_edited_messages_reuse_what_still_fits(executable: Executable) -> None:
    chat = executable.chat("Be brief.", max_tokens=8)
    first = chat.ask("Hello?")
    chat.reset()
    assert [m["role"] for m in chat.messages] == ["system"]
    again = chat.ask("Hello!")
    assert again.timings.cached_tokens == first.prompt_tokens - 2
    assert list(again.ids) == TINY.greedy(rendered(("system", "Be brief."), ("user", "Hello!")), 8, (256,))
    chat.messages[0]["content"] = "Be long."
    other = chat.ask("So?")
    said = [(m["role"], m["content"]) for m in chat.messages[:-1]]
    assert list(other.ids) == TINY.greedy(rendered(*said), 8, (256,))


def test_an_answer_that_is_left_early_stays_as_far_as_written(executable: Executable) -> None:
    chat = executable.chat(max_tokens=40)
    with chat.stream("Hello?") as stream:
        for _ in range(3):
            next(stream)
        with pytest.raises(InputError, match="still answering"):
            chat.ask("?")
    assert chat.messages[-1] == {"role": "assistant", "content": stream.result.text}
    answer = chat.ask("And?", max_tokens=6)
    said = [(m["role"], m["content"]) for m in chat.messages[:-1]]
    assert list(answer.ids) == TINY.greedy(rendered(*said), 6, (256,))


def test_speculation_and_prefix_reuse_go_together(executable: Executable) -> None:
    plain, drafted = executable.chat(max_tokens=30), executable.chat(max_tokens=30, speculate=8)
    for question in ("one two one two one two", "one two one two?", "one two"):
        assert plain.ask(question).ids == drafted.ask(question).ids


def test_a_conversation_longer_than_the_context_says_how_to_go_on(executable: Executable) -> None:
    chat = executable.chat(max_tokens=20)
    with pytest.raises(InputError, match=r"has \d+ tokens.*holds 400.*reset it"):
        chat.ask("x" * 500)
    assert chat.messages == []
    assert len(chat.ask("short").ids) == 20


def test_messages_are_a_prompt_too(executable: Executable) -> None:
    messages = [{"role": "user", "content": "Hello?"}]
    expected = TINY.greedy(rendered(("user", "Hello?")), 10, (256,))
    assert list(executable.generate(messages, max_tokens=10).ids) == expected
    batch = executable.generate([messages, messages], max_tokens=10)
    assert [list(g.ids) for g in batch] == [expected] * 2
    assert list(executable.stream(messages, max_tokens=10).result.ids) == []


def test_a_model_without_a_template_says_so(tmp_path: Path) -> None:
    write_decoder(tmp_path / "m", Tiny(), template=None)
    with open_executable(tmp_path / "m") as executable:
        with pytest.raises(ModelError, match="no chat template"):
            executable.chat().ask("Hello?")
        with pytest.raises(OptionError, match="did you mean"):
            executable.chat(temprature=1)
