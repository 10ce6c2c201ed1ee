"""Generation on a small decoder: what it writes equals the whole model run anew for every token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import InputError, OptionError, ToolError, UnsupportedError
from miaotui.runtime.executable import Executable, open_executable
from support.decoders import Attention, Tiny, write_decoder
from support.folders import write_folder

PROMPT = "Once upon a time"
IDS = list(PROMPT.encode())

Open = Callable[..., Executable]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """``opened(tiny, config=…)``: a small decoder written and opened."""
    made: list[Executable] = []

    def open_tiny(tiny: Tiny | None = None, **options: Any) -> Executable:
        folder = tmp_path / f"{len(made)}.miaotui"
        write_decoder(folder, tiny, **options)
        made.append(open_executable(folder))
        return made[-1]

    yield open_tiny
    for executable in made:
        executable.close()


def text_of(ids: list[int]) -> str:
    return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


@pytest.mark.parametrize("attention", ["gqa", "standard"])
def test_greedy_equals_the_whole_model(opened: Open, attention: Attention) -> None:
    tiny = Tiny(attention)
    expected = tiny.greedy(IDS, 60)
    made = opened(tiny).generate(PROMPT, max_tokens=60, threads=1)
    assert list(made.ids) == expected
    assert (made.text, str(made)) == (text_of(expected), text_of(expected))
    assert (made.finish_reason, made.prompt_tokens) == ("length", len(IDS))


def test_the_state_is_in_place_where_nothing_else_reads_the_past(opened: Open) -> None:
    for attention in ("gqa", "standard"):
        settings = opened(Tiny(attention)).manifest.variants["cpu-ort"].settings
        assert settings["state.in_place"] == "1"


@pytest.mark.parametrize("attention", ["gqa", "standard"])
def test_two_buffers_take_turns_where_the_state_is_not_in_place(
    opened: Open, attention: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miaotui.runtime.generate.generator.is_in_place", lambda variant: False)
    tiny = Tiny(attention)
    executable = opened(tiny)
    prompts = [IDS, IDS[:3], IDS[:9]]
    made = executable.generate(prompts, max_tokens=30, prefill_chunk=4)
    assert [list(g.ids) for g in made] == [tiny.greedy(ids, 30) for ids in prompts]
    assert list(executable.generate(PROMPT, max_tokens=30, speculate=4).ids) == tiny.greedy(IDS, 30)


def test_prompts_are_text_tokens_or_arrays(opened: Open) -> None:
    executable = opened()
    expected = executable.generate(PROMPT, max_tokens=8).ids
    for prompt in (IDS, tuple(IDS), np.array(IDS), np.array(IDS, np.int32)):
        assert executable.generate(prompt, max_tokens=8).ids == expected
    for prompts in ([PROMPT, PROMPT], [IDS, IDS], np.array([IDS, IDS]), [np.array(IDS)] * 2):
        assert [g.ids for g in executable.generate(prompts, max_tokens=8)] == [expected] * 2


@pytest.mark.parametrize("chunk", [1, 3, 5, 16, 512])
def test_chunks_of_the_prompt_change_nothing(opened: Open, chunk: int) -> None:
    tiny = Tiny()
    made = opened(tiny).generate(PROMPT, max_tokens=20, prefill_chunk=chunk)
    assert list(made.ids) == tiny.greedy(IDS, 20)


@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_batches_of_different_lengths_equal_single_runs(
    opened: Open, attention: Attention, rows: int
) -> None:
    tiny = Tiny(attention)
    prompts = ["a", "Some longer words", "xy", "Zebra!", "0123456789" * 3]
    made = opened(tiny).generate(prompts, max_tokens=25, rows=rows, prefill_chunk=7)
    assert [list(g.ids) for g in made] == [tiny.greedy(list(p.encode()), 25) for p in prompts]


def test_rows_of_a_batch_end_by_themselves(opened: Open) -> None:
    tiny = Tiny()
    prompts = [list(range(start, start + 4)) for start in range(10, 80, 10)]
    whole = [tiny.greedy(ids, 40) for ids in prompts]
    eos = [whole[0][3], whole[1][10], whole[2][0]]
    expected = [tiny.greedy(ids, 40, tuple(eos)) for ids in prompts]
    assert len({len(ids) for ids in expected}) > 2
    made = opened(tiny, config={"eos_token_id": eos}).generate(prompts, max_tokens=40)
    assert [list(g.ids) for g in made] == expected
    for generation, ids in zip(made, expected, strict=True):
        assert generation.finish_reason == ("stop" if ids[-1] in eos else "length")
        assert text_of([i for i in ids if i not in eos]) == generation.text


def test_buffers_grow_in_powers_of_two_up_to_the_context(opened: Open) -> None:
    tiny = Tiny(context=200)
    generator = opened(tiny).generator(threads=1)
    decoder = generator.decoder(1)
    assert decoder.capacity == 64
    decoder.prefill(0, IDS)
    ids, seen = [int(decoder.tokens[0, 0])], set()
    while len(IDS) + len(ids) < 200:
        decoder.step()
        ids.append(int(decoder.tokens[0, 0]))
        seen.add(decoder.capacity)
    assert seen == {64, 128, 200}
    assert ids == tiny.greedy(IDS, len(ids))


def test_text_ends_where_the_context_does(opened: Open) -> None:
    tiny = Tiny(context=24)
    executable = opened(tiny)
    made = executable.generate(PROMPT, max_tokens=100)
    assert (list(made.ids), made.finish_reason) == (tiny.greedy(IDS, 24 - len(IDS)), "length")
    batch = executable.generate([IDS, IDS[:2]], max_tokens=100)
    assert [len(g.ids) for g in batch] == [24 - len(IDS), 22]
    assert list(batch[1].ids) == tiny.greedy(IDS[:2], 22)
    drafted = executable.generate(PROMPT, max_tokens=100, speculate=8)
    assert drafted.ids == made.ids


def test_prompts_that_do_not_fit_the_context_are_named_with_numbers(opened: Open) -> None:
    executable = opened(Tiny(context=24))
    with pytest.raises(InputError, match=r"prompt: has 30 tokens.* context holds 24.*shorten it by 7"):
        executable.generate("x" * 30)
    with pytest.raises(InputError) as caught:
        executable.generate(["x" * 30, "ok", "", [1, 300][0:0], "y" * 24])
    assert [p.place for p in caught.value.problems] == ["prompt 1", "prompt 3", "prompt 4", "prompt 5"]


def test_what_is_no_prompt_is_refused(opened: Open) -> None:
    executable = opened()
    for wrong in (3, 2.5, None, b"bytes", {"role": "user"}, [1.5], np.ones(3)):
        with pytest.raises(InputError, match="give text, a list of tokens"):
            executable.generate(wrong)
    with pytest.raises(InputError, match="token 999, the model's vocabulary ends at 263"):
        executable.generate([1, 999])
    with pytest.raises(InputError, match="surrogate"):
        executable.generate("\udcff")


def test_unknown_and_bad_options_are_all_named(opened: Open) -> None:
    executable = opened()
    with pytest.raises(OptionError, match="did you mean 'temperature'"):
        executable.generate("a", temprature=1)
    with pytest.raises(OptionError) as caught:
        executable.generate("a", temperature=-1, top_p=0, max_tokens=0, stop=[""], seed=1.5, min_p=2)
    places = {p.place for p in caught.value.problems}
    assert places == {"temperature", "top_p", "max_tokens", "stop", "seed", "min_p"}


def test_a_model_without_state_says_why(tmp_path: Path, opened: Open) -> None:
    write_folder(tmp_path / "mlp")
    with open_executable(tmp_path / "mlp") as mlp, pytest.raises(UnsupportedError, match="keeps state"):
        mlp.generate("a")
    tiny = Tiny()
    program = tiny.program()
    program.decoding = None
    del program.entries["decode"]
    executable = opened(tiny, program=program, declined=("node 'a' (Attention): mask depends on ids",))
    with pytest.raises(UnsupportedError, match="mask depends on ids"):
        executable.generate("a")


def test_without_a_tokenizer_tokens_still_work(opened: Open) -> None:
    tiny = Tiny()
    executable = opened(tiny, tokenizer=False)
    made = executable.generate(IDS, max_tokens=5)
    assert (list(made.ids), made.text) == (tiny.greedy(IDS, 5), "")
    for call in (
        lambda: executable.generate("a"), lambda: executable.stream(IDS), lambda: executable.chat(),
        lambda: executable.generate(IDS, stop="x"),
    ):  # fmt: skip
        with pytest.raises(ToolError, match="tokenizer"):
            call()


def test_streamed_pieces_are_the_text_and_may_be_left_early(opened: Open) -> None:
    executable = opened()
    whole = executable.generate(PROMPT, max_tokens=40)
    stream = executable.stream(PROMPT, max_tokens=40)
    pieces = list(stream)
    assert "".join(pieces) == whole.text == stream.result.text
    assert len(pieces) > 5 and "�" not in "".join(pieces[:-1]).replace("�", "", whole.text.count("�"))
    with executable.stream(PROMPT, max_tokens=40) as short:
        first = next(short)
    assert short.result.finish_reason == "cancelled"
    assert short.result.text.startswith(first)
    assert executable.generate(PROMPT, max_tokens=40).ids == whole.ids


def test_logits_of_every_token_equal_the_whole_model(opened: Open) -> None:
    tiny = Tiny()
    logits = opened(tiny).logits(PROMPT)
    assert (logits.shape, logits.dtype) == ((len(IDS), 264), np.float32)
    np.testing.assert_allclose(logits, tiny.logits(IDS), atol=1e-3)


def test_logprobs_are_of_the_bare_logits(opened: Open) -> None:
    tiny = Tiny()
    made = opened(tiny).generate(PROMPT, max_tokens=4, logprobs=3, repetition_penalty=1.5)
    assert made.logprobs is not None and [entry.id for entry in made.logprobs] == list(made.ids)
    for number, entry in enumerate(made.logprobs):
        logits = tiny.logits([*IDS, *made.ids[:number]])[-1].astype(np.float64)
        expected = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert entry.logprob == pytest.approx(expected[entry.id], abs=1e-3)
        assert [token for token, _ in entry.top] == np.argsort(-expected)[:3].tolist()
        assert [value for _, value in entry.top] == pytest.approx(np.sort(expected)[::-1][:3], abs=1e-3)
    assert opened(tiny).generate(PROMPT, max_tokens=1).logprobs is None


def test_threads_may_generate_at_the_same_time(opened: Open) -> None:
    tiny = Tiny()
    executable = opened(tiny)
    prompts = [list(range(start, start + 5)) for start in range(0, 200, 25)]
    expected = [tiny.greedy(ids, 20) for ids in prompts]
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        for _ in range(3):
            found[number] = list(executable.generate(prompts[number], max_tokens=20).ids)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(len(prompts))] == expected


def test_timings_count_tokens_and_time(opened: Open) -> None:
    made = opened().generate(PROMPT, max_tokens=20)
    timings = made.timings
    assert (timings.rows, timings.prompt_tokens, timings.new_tokens) == (1, len(IDS), 20)
    assert 0 < timings.prefill <= timings.ttft and timings.decode > 0
    assert timings.decode_rate == pytest.approx(19 / timings.decode)
    assert timings.tpot_p50 is not None and timings.tpot_p99 is not None
    assert timings.tpot_p50 <= timings.tpot_p99
    assert "TTFT" in str(timings) and "tok/s" in str(timings)
    assert made.to_json()["timings"]["decode_rate"] == timings.decode_rate
    [short] = opened().generate([PROMPT], max_tokens=1)
    assert (short.timings.tpot_p50, short.timings.decode_rate) == (None, None)


def test_the_end_token_ends_and_may_be_ignored(opened: Open) -> None:
    tiny = Tiny()
    whole = tiny.greedy(IDS, 30)
    at, eos = next((at, token) for at, token in enumerate(whole) if at >= 4 and token not in whole[:at])
    executable = opened(tiny, config={"eos_token_id": eos})
    ended = executable.generate(PROMPT, max_tokens=30)
    assert (list(ended.ids), ended.finish_reason) == (whole[: at + 1], "stop")
    assert ended.text == text_of(whole[:at])
    later = executable.generate(PROMPT, max_tokens=30, min_tokens=at + 5)
    assert len(later.ids) >= at + 5 and eos not in later.ids[: at + 5]
    ignoring = executable.generate(PROMPT, max_tokens=30, ignore_eos=True)
    assert len(ignoring.ids) == 30 and eos not in ignoring.ids


def test_max_tokens_comes_from_the_generation_config(opened: Open) -> None:
    assert len(opened(config={"max_new_tokens": 7}).generate(PROMPT).ids) == 7
    assert len(opened(Tiny(context=512)).generate(PROMPT).ids) == 128


def test_a_decoder_without_a_cache_is_compiled_into_one_that_generates(tmp_path: Path) -> None:
    import miaotui

    tiny = Tiny()
    (tmp_path / "tiny.onnx").write_bytes(
        ir.serde.serialize_model(tiny.program().entries["main"]).SerializeToString()
    )
    prompts = [IDS, IDS[:2], IDS[3:12]]
    expected = [tiny.greedy(ids, 30) for ids in prompts]
    with miaotui.compile(tmp_path / "tiny.onnx", timing=0.0, threads=1, backend="ort") as executable:
        for options in ({}, {"prefill_chunk": 3}, {"speculate": 6}, {"rows": 1}):
            made = executable.generate(prompts, max_tokens=30, **options)
            assert [list(g.ids) for g in made] == expected, options
        with pytest.raises(InputError, match="context holds 128"):
            executable.generate([1] * 128)
