"""The C runtime and the runner over it, on a model written by hand: checks, state, files, threads."""

from __future__ import annotations

import ctypes
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miaotui.compiler.errors import ArtifactError, CompileError, InputError, InternalError, ToolError
from miaotui.runtime import native_library
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.native import NativeRunner
from miaotui.runtime.native_library import Library
from miaotui.runtime.stepwise import StepwiseRunner
from support import toy_native as toy
from support.toy_native import CONTEXT, VOCABULARY, following, written

OK, BAD_ARGUMENT, NO_MEMORY, BAD_FILE, BAD_CPU, FULL = range(6)


def runner(entry: str = "main", threads: int = 2) -> NativeRunner:
    return NativeRunner(toy.model(toy.built(), entry), threads)


def x_of(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)


# ---- the runner


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_runs_with_any_number_of_threads(threads: int) -> None:
    x, index = np.arange(1000, dtype=np.float32), np.arange(1000) % 8
    with runner(threads=threads) as opened:
        for _ in range(50):
            assert np.array_equal(opened.run({"x": x, "index": index})["y"], 2 * x + toy.TABLE[index])


def test_takes_nothing_and_arrays_with_gaps() -> None:
    with runner() as opened:
        assert opened.run({"x": x_of(), "index": np.zeros(0, np.int64)})["y"].shape == (0,)
        y = opened.run({"x": np.arange(6, dtype=np.float32)[::2], "index": np.zeros(3, np.int64)})["y"]
    assert y.tolist() == [0, 4, 8]


def test_what_a_kernel_finds_wrong_is_an_error() -> None:
    with runner() as opened, pytest.raises(InputError, match="main: an index lies outside of the table"):
        opened.run({"x": x_of(1, 2), "index": np.array([0, 8])})


def test_inputs_are_checked_against_the_signature() -> None:
    with runner() as opened, pytest.raises(InputError, match=r"input 'index'.*n=3"):
        opened.run({"x": x_of(1, 2), "index": np.zeros(3, np.int64)})


def test_closed_runners_say_so() -> None:
    opened = runner()
    opened.close()
    with pytest.raises(CompileError, match="was closed"):
        opened.run({"x": x_of(), "index": np.zeros(0, np.int64)})


def test_several_threads_may_call_and_one_may_close() -> None:
    x, index = np.arange(64, dtype=np.float32), np.arange(64) % 8
    opened = runner()
    started = threading.Event()

    def work() -> int:
        done = 0
        try:
            for _ in range(3000):
                assert np.array_equal(opened.run({"x": x, "index": index})["y"], 2 * x + toy.TABLE[index])
                done += 1
                started.set()
        except CompileError as error:
            assert "was closed" in str(error)
        return done

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work) for _ in range(4)]
        started.wait(30)
        opened.close()
        assert sum(w.result() for w in working) > 0


def test_another_signature_is_our_bug_not_a_fault() -> None:
    model = toy.model(toy.built())
    with pytest.raises(InternalError, match="the library takes x, index, y"):
        NativeRunner(replace(model, signature=toy.DECODE))


# ---- text


@pytest.fixture
def decode() -> Iterator[NativeRunner]:
    with runner("decode") as opened:
        yield opened


def test_a_decoder_writes_what_the_model_says(decode: NativeRunner) -> None:
    decoder = Decoder(decode, toy.DECODING, capacity=8, in_place=True)
    decoder.prefill(0, [3, 1, 2])
    text = []
    for _ in range(200):  # the buffers grow on the way
        text.append(int(decoder.tokens[0, 0]))
        decoder.step()
    assert text == written([3, 1, 2], 200)
    assert decoder.logits.argmax() == decoder.tokens[0, 0]


def test_rows_of_different_lengths_run_together(decode: NativeRunner) -> None:
    prompts = [[1], [2, 3, 4], [5] * 70]
    decoder = Decoder(decode, toy.DECODING, rows=3, capacity=8, in_place=True)
    decoder.prefill_together(prompts)
    for row, prompt in enumerate(prompts):
        assert decoder.tokens[row, 0] == following(prompt)
    decoder.keep([2, 0])
    decoder.step()
    assert decoder.tokens[:, 0].tolist() == [written(prompts[2], 2)[1], written(prompts[0], 2)[1]]


def test_drafts_are_checked_in_one_run(decode: NativeRunner) -> None:
    decoder = Decoder(decode, toy.DECODING, in_place=True)
    decoder.prefill(0, [1, 2])
    _, found = decoder.extend([7, 9])
    assert found.tolist() == [following([1, 2, 7]), following([1, 2, 7, 9])]


def test_stepwise_passes_state_in_and_out() -> None:
    ids = np.array([[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3]])
    with StepwiseRunner(toy.DECODING, runner("decode")) as stepwise:
        logits = stepwise.logits({"input_ids": ids})
    expected = [[following(list(row[: i + 1])) for i in range(7)] for row in ids]
    assert logits.argmax(-1).tolist() == expected


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"input_ids": [[VOCABULARY]]}, r"input_ids\[0\] is 32, outside 0\.\.31"),
        ({"input_ids": [[-1]]}, r"input_ids\[0\] is -1, outside 0\.\.31"),
        ({"past_lengths": [-1]}, r"past_lengths\[0\] is -1, outside"),
        ({"past_lengths": [4]}, r"past_lengths\[0\] is 4: with 1 more there is room for 4"),
        ({"past_lengths": [2**62]}, "there is room for 4"),
        ({"select": [[1]]}, r"select\[0\] is 1, outside 0\.\.0"),
        ({"select": [[-1]]}, r"select\[0\] is -1, outside 0\.\.0"),
        ({"input_ids": [[0, 0, 0, 0, 0]]}, "with 5 more there is room for 4"),
        ({"input_ids": np.zeros((1, 0))}, r"tokens is 0, outside 1\.\."),
    ],
)
def test_ids_and_lengths_out_of_range_are_errors(
    decode: NativeRunner, change: dict[str, Any], fact: str
) -> None:
    inputs = {"input_ids": [[5]], "past_lengths": [3], "select": [[0]]} | change
    arrays = {name: np.array(value, np.int64) for name, value in inputs.items()}
    with pytest.raises(InputError, match=fact):
        decode.run({**arrays, "past_key_0": np.zeros((1, 1, 4, 1), np.float32)})


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.integers(-2, 40), min_size=1, max_size=6),
    length=st.integers(-3, 12),
    select=st.lists(st.integers(-2, 8), max_size=3),
    capacity=st.integers(1, 10),
)
def test_random_calls_give_the_right_answer_or_an_error(
    tokens: list[int], length: int, select: list[int], capacity: int
) -> None:
    past = np.zeros((1, 1, capacity, 1), np.float32)
    fits = (
        all(0 <= t < VOCABULARY for t in tokens)
        and 0 <= length <= capacity - len(tokens)
        and all(0 <= s < len(tokens) for s in select)
    )
    inputs = {
        "input_ids": np.array([tokens], np.int64),
        "past_lengths": np.array([length], np.int64),
        "select": np.array([select], np.int64).reshape(1, -1),
        "past_key_0": past,
    }
    with runner("decode", threads=1) as opened:
        if not fits:
            with pytest.raises(InputError):
                opened.run(inputs)
            return
        found = opened.run(inputs)
    held = [0] * length
    assert found["next"].tolist() == [[following(held + tokens[: s + 1]) for s in select]]
    assert found["present_key_0"][0, 0, length : length + len(tokens), 0].tolist() == tokens
    assert not past.any()


# ---- the C interface


class C:
    """Functions of model.h over one model."""

    def __init__(self, threads: int = 1) -> None:
        self.folder = toy.built()
        self.library = Library.of(self.folder / "libmodel.so")
        self.f = self.library.functions
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        for name, result, arguments in (
            ("state_new", pointer, [pointer, number, number]),
            ("state_free", None, [pointer]),
            ("prefill", ctypes.c_int, [pointer, number, pointer, number]),
            ("decode", ctypes.c_int, [pointer, pointer, pointer]),
            ("encode", ctypes.c_int, [pointer, pointer, number]),
            ("logits", ctypes.POINTER(ctypes.c_float), [pointer, number]),
            ("next", number, [pointer, number]),
            ("length", number, [pointer, number]),
            ("truncate", ctypes.c_int, [pointer, number, number]),
            ("reset", ctypes.c_int, [pointer, number]),
            ("vocabulary", number, []),
            ("context", number, []),
            ("entry_name", ctypes.c_char_p, [ctypes.c_int]),
        ):
            function = getattr(self.f, f"miaotui_{name}")
            function.restype, function.argtypes = result, arguments
        self.model = self.f.miaotui_open(str(self.folder / "model.weights").encode(), threads)
        assert self.model

    def prefill(self, state: Any, row: int, ids: list[int]) -> int:
        return int(self.f.miaotui_prefill(state, row, numbers(ids), len(ids)))


def numbers(values: list[int]) -> Any:
    return (ctypes.c_int64 * max(1, len(values)))(*values)


@pytest.fixture
def c() -> Iterator[C]:
    opened = C()
    yield opened
    opened.f.miaotui_close(opened.model)
    opened.library.close()


def test_c_states_write_rows_together_and_alone(c: C) -> None:
    state = c.f.miaotui_state_new(c.model, 3, 40)
    prompts = [[1, 2], [3], [4, 5, 6]]
    for row, prompt in enumerate(prompts):
        assert c.prefill(state, row, prompt) == OK
    tokens = numbers([c.f.miaotui_next(state, row) for row in range(3)])
    texts: list[list[int]] = [[], [], []]
    for step in range(20):
        for row in range(3):
            if tokens[row] >= 0:
                texts[row].append(tokens[row])
        if step == 5:
            tokens[1] = -1  # this row rests from here on
        assert c.f.miaotui_decode(state, tokens, tokens) == OK
    assert texts == [written(prompts[0], 20), written(prompts[1], 6), written(prompts[2], 20)]
    assert [c.f.miaotui_length(state, row) for row in range(3)] == [22, 6, 23]
    logits = c.f.miaotui_logits(state, 1)
    assert int(np.argmax(logits[:VOCABULARY])) == texts[1][-1]
    c.f.miaotui_state_free(state)


def test_c_prompts_longer_than_a_chunk_are_read_whole(c: C) -> None:
    state = c.f.miaotui_state_new(c.model, 1, CONTEXT)
    ids = [i % VOCABULARY for i in range(990)]
    assert c.prefill(state, 0, ids) == OK
    assert c.f.miaotui_next(state, 0) == following(ids)
    assert c.f.miaotui_truncate(state, 0, 500) == OK
    assert c.f.miaotui_next(state, 0) == -1
    assert c.prefill(state, 0, [5]) == OK
    assert c.f.miaotui_next(state, 0) == following([*ids[:500], 5])
    assert c.f.miaotui_reset(state, 0) == OK
    assert c.prefill(state, 0, [5]) == OK
    assert c.f.miaotui_next(state, 0) == following([5])
    c.f.miaotui_state_free(state)


def test_c_misuse_is_an_error_with_a_sentence(c: C) -> None:
    f = c.f
    assert [f.miaotui_vocabulary(), f.miaotui_context()] == [VOCABULARY, CONTEXT]
    for rows, capacity in ((0, 1), (1, 0), (-1, 5), (1, CONTEXT + 1), (2**40, 5)):
        assert not f.miaotui_state_new(c.model, rows, capacity)
        assert b"sequences" in f.miaotui_last_error()
    assert not f.miaotui_state_new(None, 1, 1)
    state = f.miaotui_state_new(c.model, 2, 4)
    assert f.miaotui_encode(state, numbers([1]), 1) == BAD_ARGUMENT
    assert b"no encoder" in f.miaotui_last_error()
    for row in (-1, 2, 2**40):
        assert c.prefill(state, row, [1]) == BAD_ARGUMENT
        assert b"no row" in f.miaotui_last_error()
        assert f.miaotui_length(state, row) == -1
        assert f.miaotui_reset(state, row) == BAD_ARGUMENT
    assert c.prefill(state, 0, []) == BAD_ARGUMENT
    assert f.miaotui_prefill(state, 0, None, 3) == BAD_ARGUMENT
    assert f.miaotui_prefill(None, 0, numbers([1]), 1) == BAD_ARGUMENT
    assert c.prefill(state, 0, [1, VOCABULARY]) == BAD_ARGUMENT
    assert b"token 1 is 32, outside 0..31" in f.miaotui_last_error()
    assert c.prefill(state, 0, [1] * 5) == FULL
    assert b"holds 0 of 4 tokens" in f.miaotui_last_error()
    assert not f.miaotui_logits(state, 0)
    assert c.prefill(state, 0, [1, 2, 3, 4]) == OK
    assert f.miaotui_decode(state, numbers([1, 1]), None) == FULL
    assert f.miaotui_length(state, 1) == 0
    assert f.miaotui_decode(state, numbers([-1, 1]), None) == OK
    assert f.miaotui_decode(state, None, None) == BAD_ARGUMENT
    assert f.miaotui_truncate(state, 0, 5) == BAD_ARGUMENT
    assert f.miaotui_truncate(state, 0, -1) == BAD_ARGUMENT
    assert f.miaotui_next(state, 0) == following([1, 2, 3, 4])
    f.miaotui_state_free(state)
    f.miaotui_state_free(None)
    f.miaotui_close(None)


def test_c_runs_check_sizes_and_pointers(c: C) -> None:
    f, x, index, y = c.f, numbers([0, 0]), numbers([0, 0]), numbers([0, 0])

    def run(entry: int, sizes: list[int], places: list[Any]) -> int:
        pointers = (ctypes.c_void_p * max(1, len(places)))(*places)
        return int(f.miaotui_run(c.model, entry, numbers(sizes), pointers))

    memory = [ctypes.addressof(a) for a in (x, index, y)]
    assert run(0, [2], memory) == OK
    assert run(0, [2], [memory[0], memory[1], None]) == OK
    for entry in (-1, 2, 1000):
        assert run(entry, [2], memory) == BAD_ARGUMENT
        assert f.miaotui_entry_name(entry) is None
    assert run(0, [-1], memory) == BAD_ARGUMENT
    assert run(0, [2**31], memory) == BAD_ARGUMENT
    assert run(0, [2], [None, memory[1], memory[2]]) == BAD_ARGUMENT
    assert b"x is missing" in f.miaotui_last_error()
    assert run(0, [2], [memory[0] + 1, *memory[1:]]) == BAD_ARGUMENT
    assert b"x is not aligned" in f.miaotui_last_error()
    assert f.miaotui_run(c.model, 0, None, None) == BAD_ARGUMENT
    assert f.miaotui_run(None, 0, None, None) == BAD_ARGUMENT
    assert f.miaotui_entry(b"decode") == 1 and f.miaotui_entry(b"none") == -1
    shape = numbers([0] * 8)
    assert f.miaotui_shape(1, 3, numbers([2, 3, 1, 9]), shape) == OK
    assert list(shape)[:4] == [2, 1, 9, 1]
    assert f.miaotui_shape(1, 99, numbers([2, 3, 1, 9]), shape) == BAD_ARGUMENT
    for threads in (-1, 100000):
        assert not f.miaotui_open(b"weights", threads)


def test_sizes_that_no_memory_holds_are_an_error_and_the_next_run_is_right(c: C) -> None:
    memory = [numbers([0] * 8) for _ in range(3)]
    places = (ctypes.c_void_p * 3)(*map(ctypes.addressof, memory))
    for _ in range(2):
        assert c.f.miaotui_run(c.model, 0, numbers([2**31 - 1]), places) == NO_MEMORY
        assert b"no memory for 140737488 MB" in c.f.miaotui_last_error()
        assert c.f.miaotui_run(c.model, 0, numbers([1]), places) == OK


def test_errors_belong_to_their_thread(c: C) -> None:
    assert c.f.miaotui_entry_name(9) is None
    assert c.f.miaotui_run(None, 0, None, None) == BAD_ARGUMENT
    here = c.library.error()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(c.library.error).result() == ""
    assert c.library.error() == here != ""


# ---- files


def test_another_file_at_the_same_path_is_another_library(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(toy.built(), folder)
    first = NativeRunner(toy.model(folder), 1)
    toy.build(tmp_path / "new")
    shutil.rmtree(folder)
    (tmp_path / "new").rename(folder)
    second, again = NativeRunner(toy.model(folder), 1), NativeRunner(toy.model(folder), 1)
    libraries = [opened._opened.library for opened in (first, second, again) if opened._opened is not None]
    assert libraries[0] is not libraries[1] is libraries[2]
    inputs = {"x": x_of(1), "index": np.array([1])}
    for opened in (first, second, again):
        assert opened.run(inputs)["y"].tolist() == [12]
        opened.close()


def test_a_runner_may_be_collected_while_a_library_is_being_loaded() -> None:
    first = runner()
    with native_library._lock:  # the collector runs in the middle of loading another
        first.close()
    with runner() as second:
        index = np.zeros(1, np.int64)
        assert second.run({"x": x_of(3), "index": index})["y"] == 6 + toy.TABLE[0]
    assert not native_library._leaving


def test_held_files_are_read_whatever_lies_at_their_place(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(toy.built(), folder)
    with (folder / "libmodel.so").open("rb") as library, (folder / "model.weights").open("rb") as weights:
        shutil.rmtree(folder)
        model = replace(toy.model(folder), held_library=library, held_weights=weights)
        with NativeRunner(model, 1) as opened:
            assert opened.run({"x": x_of(1), "index": np.array([1])})["y"].tolist() == [12]


def test_a_damaged_library_is_refused(tmp_path: Path) -> None:
    model = toy.model(toy.built())
    (tmp_path / "cut.so").write_bytes(model.library.read_bytes()[:1000])
    (tmp_path / "text.so").write_text("no library")
    for name in ("cut.so", "text.so", "none.so"):
        with pytest.raises(ArtifactError, match=r"can't be (loaded|read)"):
            NativeRunner(replace(model, library=tmp_path / name))


def test_another_machines_library_is_refused_in_a_sentence(tmp_path: Path) -> None:
    model = toy.model(toy.built())
    data = bytearray(model.library.read_bytes())
    data[18:20] = (243).to_bytes(2, "little")
    (tmp_path / "riscv.so").write_bytes(data)
    with pytest.raises(ToolError, match=r"was built for riscv64, this machine is \w+"):
        NativeRunner(replace(model, library=tmp_path / "riscv.so"))
