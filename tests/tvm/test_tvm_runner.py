"""What a runner of a library does with the memory of inputs and outputs, and with threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.codegen.tvm.lowering import EMBEDDED
from miaotui.compiler.errors import CompileError
from miaotui.compiler.ir.builder import Builder
from miaotui.runtime.tvm import TvmRunner
from miaotui.runtime.tvm_inputs import ALIGNMENT, aligned_copy
from miaotui.runtime.tvm_tensors import runtime
from support import tvm_programs
from support.decode_graphs import Layers

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)
TABLE = np.arange(4096, dtype=np.float32).reshape(64, 64)
FEW = TABLE.reshape(-1)[: EMBEDDED // 4]
"""The largest constant that lies in the library."""

WIDE = 20_000
"""Columns from which on a row is read where it lies."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runner")


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[TvmRunner]:
    """y = 2 x + n, x itself in another shape, a weight, and a constant that lies in the library."""
    b = Builder()
    x, n = b.input("x", ("rows", "columns")), b.input("n", ("rows", 1))
    b.output(b.op("Add", b.op("Mul", x, b.weight("two", np.float32(2))), n), "y")
    b.output(b.op("Reshape", x, b.weight("shape", np.array([-1, 2], np.int64))), "pairs")
    b.output(b.op("Identity", b.weight("weight", TABLE)), "table")
    b.output(b.op("Identity", b.weight("few", FEW)), "short")
    with tvm_programs.opened(b.program(), folder) as made:
        yield made


def numbers(rows: int, columns: int) -> Array:
    return RANDOM.standard_normal((rows, columns), dtype=np.float32)


def at(array: Array, offset: int) -> Array:
    """A copy that begins ``offset`` bytes behind a cache line."""
    memory = aligned_copy(np.zeros(array.nbytes + ALIGNMENT, np.uint8))
    moved: Array = memory[offset : offset + array.nbytes].view(array.dtype).reshape(array.shape)
    moved[...] = array
    return moved


@pytest.mark.parametrize("columns", [6, WIDE])
@pytest.mark.parametrize("offset", [0, 4])
def test_outputs_are_the_callers_and_inputs_stay(runner: TvmRunner, columns: int, offset: int) -> None:
    held = []
    for _ in range(3):
        x, n = at(numbers(2, columns), offset), numbers(2, 1)
        held.append((x, x.copy(), n, runner.run({"x": x, "n": n})))
    for x, before, n, found in held:
        np.testing.assert_array_equal(x, before)
        np.testing.assert_allclose(found["y"], 2 * before + n, rtol=1e-6)
        np.testing.assert_array_equal(found["pairs"], before.reshape(-1, 2))
        np.testing.assert_array_equal(found["table"], TABLE)
        np.testing.assert_array_equal(found["short"], FEW)
        found["pairs"][...] = found["table"][...] = found["short"][...] = 7
        np.testing.assert_array_equal(x, before)


def test_forms_may_change_from_run_to_run(runner: TvmRunner) -> None:
    frozen = numbers(3, 4)
    frozen.flags.writeable = False
    forms = {
        "short": numbers(1, 2), "by columns": np.asfortranarray(numbers(3, 4)), "frozen": frozen,
        "every other": numbers(6, 4)[::2], "backwards": numbers(3, 4)[:, ::-1], "empty": numbers(0, 4),
        "wide": numbers(1, WIDE), "wide by columns": np.asfortranarray(numbers(2, WIDE)),
    }  # fmt: skip
    for name, x in [*forms.items(), *forms.items()]:
        n = numbers(len(x), 1)
        found = runner.run({"x": x, "n": n})
        np.testing.assert_allclose(found["y"], 2 * x + n, rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(found["pairs"], x.reshape(-1, 2), err_msg=name)


def test_a_run_that_fails_leaves_nothing_behind(runner: TvmRunner) -> None:
    with pytest.raises(CompileError, match="a kernel failed"):
        runner.run_arrays({"x": numbers(2, 4), "n": numbers(3, 1)})
    x, n = numbers(2, 4), numbers(2, 1)
    np.testing.assert_allclose(runner.run({"x": x, "n": n})["y"], 2 * x + n, rtol=1e-6)


def test_threads_get_what_is_theirs_and_as_many_workers_as_were_asked_for(runner: TvmRunner) -> None:
    def runs(seed: int) -> int:
        random = np.random.default_rng(seed)
        for _ in range(200):
            x = random.standard_normal((4, 64), dtype=np.float32)
            n = random.standard_normal((4, 1), dtype=np.float32)
            found = runner.run({"x": x, "n": n})
            np.testing.assert_allclose(found["y"], 2 * x + n, rtol=1e-6)
            np.testing.assert_array_equal(found["pairs"], x.reshape(-1, 2))
        return int(runtime().get_global_func("runtime.NumThreads")())

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(runs, range(4))) == {runner.threads} == {1}


def test_state_that_is_bound_is_updated_in_place_wherever_it_lies(folder: Path) -> None:
    layers = Layers()
    (folder / "decoder").mkdir()
    with tvm_programs.opened(layers.program(), folder / "decoder", "decode") as decoder:
        feeds = layers.feeds([3, 0], tokens=2)
        wanted = decoder.run(feeds)
        for state in layers.decoding().state:
            assert not np.shares_memory(wanted[state.output], feeds[state.input])
        for offset in (0, 8):
            bound = {name: at(array, offset) for name, array in feeds.items()}
            states = {s.output: bound[s.input] for s in layers.decoding().state}
            logits = np.zeros_like(wanted["logits"])
            binding = decoder.bind(bound, {**states, "logits": logits})
            bound["input_ids"][...] = 0
            decoder.run_bound(binding)
            assert not np.array_equal(logits, wanted["logits"])
            for name, array in feeds.items():
                bound[name][...] = array
            decoder.run_bound(binding)
            np.testing.assert_array_equal(logits, wanted["logits"])
            for name, array in states.items():
                np.testing.assert_array_equal(array, wanted[name])
            np.testing.assert_array_equal(bound["input_ids"], feeds["input_ids"])
