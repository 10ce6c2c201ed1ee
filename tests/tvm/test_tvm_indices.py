"""Indices as ONNX means them: negative ones count from the end, those outside of their axis are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.errors import CompileError
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.program import Program
from miaotui.runtime.tvm import TvmRunner
from support import tvm_programs

DATA = np.arange(30, dtype=np.float32).reshape(5, 6)

READS: dict[str, tuple[tuple[Any, ...], list[int], list[int]]] = {
    "Gather": (("count",), [-5, 4], [0, 4]),
    "GatherElements": (("count", 6), [-5, 4, 0, -1, 1, -2], [0, 4, 0, 4, 1, 3]),
    "GatherND": (("count", 2), [-5, -6, 4, 5], [0, 0, 4, 5]),
    "ScatterND": (("count", 2), [-5, -6, 4, 5], [0, 0, 4, 5]),
    "ScatterElements": (("count", 6), [-5, 4, 0, -1, 1, -2], [0, 4, 0, 4, 1, 3]),
}
"""Operator → sizes of its indices, indices from the end, the same from the front."""


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TvmRunner]:
    """One library with an entry for each operator."""
    folder, entries = tmp_path_factory.mktemp("indices"), {}
    for operator, (shape, _, _) in READS.items():
        b = Builder()
        inputs = [b.input("data", ("rows", 6)), b.input("at", shape, INT64)]
        if operator.startswith("Scatter"):
            inputs.append(b.input("updates", shape[:1] if operator == "ScatterND" else shape))
        b.output(b.op(operator, *inputs), "y")
        entries["main" if not entries else operator] = b.program().main
    program = Program(entries)
    build = tvm_programs.built(program, folder)
    opened = [tvm_programs.runner(program, build, folder, entry) for entry in entries]
    return dict(zip(READS, opened, strict=True))


@pytest.mark.parametrize("operator", READS)
def test_counts_from_the_end_and_refuses_what_is_outside(
    operator: str, runners: dict[str, TvmRunner]
) -> None:
    runner = runners[operator]
    shape, behind, front = READS[operator]
    sizes = [-1, *(n for n in shape[1:])]

    def run(indices: list[int]) -> Any:
        at = np.array(indices, np.int64).reshape(sizes)
        feeds = {"data": DATA, "at": at}
        if len(runner.inputs) == 3:
            feeds["updates"] = np.ones(at.shape[:1] if operator == "ScatterND" else at.shape, np.float32)
        return runner.run(feeds)["y"]

    np.testing.assert_array_equal(run(behind), run(front))
    for outside in (5, -6) if operator in ("Gather", "GatherElements", "ScatterElements") else (6, -7):
        with pytest.raises(CompileError, match=rf"\({operator}\): an index is outside of its axis"):
            run([*front[:-1], outside])
    np.testing.assert_array_equal(run(behind), run(front))


def test_gathers_no_rows(runners: dict[str, TvmRunner]) -> None:
    assert runners["Gather"].run({"data": DATA, "at": np.zeros(0, np.int64)})["y"].shape == (0, 6)
