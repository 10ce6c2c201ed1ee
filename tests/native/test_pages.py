"""Weights in large pages: results are the same before, while and after they take the file's place."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from miaotui.compiler.codegen.isa import WITHOUT
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.program import Program
from support.native_programs import build, opened

ROWS, WIDTH = 40_000, 256
"""A table of 40 MB: twenty large pages, of which the last is not whole."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    b = Builder()
    ids = b.input("ids", ("count",), INT64)
    places = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    b.output(b.op("Relu", b.op("Gather", b.weight("table", places), ids)), "rows")
    program, folder = b.program(), tmp_path_factory.mktemp("table")
    build(program, folder)
    return program, folder


def large_kilobytes() -> int:
    """Anonymous memory of this process in large pages."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("AnonHugePages:"))


def are_offered() -> bool:
    """Whether the system gives large pages to who asks."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[never]" not in setting.read_text(encoding="utf-8")


def test_rows_stay_the_same_while_pages_change(table: tuple[Program, Path]) -> None:
    program, folder = table
    rng = np.random.default_rng(0)
    with opened(program, folder) as runner:
        end = time.monotonic() + 2
        while time.monotonic() < end:
            ids = rng.integers(0, ROWS, 64)
            rows = runner.run({"ids": ids})["rows"]
            assert np.array_equal(rows[:, 0], (ids * WIDTH).astype(np.float32))


def test_a_model_can_be_closed_before_its_pages_are_copied(table: tuple[Program, Path]) -> None:
    program, folder = table
    for _ in range(5):
        with opened(program, folder) as runner:
            runner.run({"ids": np.array([ROWS - 1])})


@pytest.mark.skipif(not are_offered(), reason="the system gives no large pages")
@pytest.mark.parametrize("without", ["", "LARGE-PAGES"])
def test_weights_end_up_in_large_pages(
    table: tuple[Program, Path], monkeypatch: pytest.MonkeyPatch, without: str
) -> None:
    program, folder = table
    monkeypatch.setenv(WITHOUT, without)
    before = large_kilobytes()
    with opened(program, folder) as runner:
        for _ in range(100):
            runner.run({"ids": np.array([0])})
            time.sleep(0.01)
        gained = large_kilobytes() - before
    assert gained < 4 << 10 if without else gained > 20 << 10
