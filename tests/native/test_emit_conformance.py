"""The ONNX project's node tests of every operator that native code is emitted for, in one library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.errors import CompileError
from miaotui.frontends.onnx import import_onnx
from support import onnx_backend
from support.native_cases import Case, Library

LEAST = 430
"""Cases that must be emitted, so that a reason that says too much is noticed."""


@dataclass(frozen=True)
class Emitted:
    """A case of the suite, its data, and its place in the library."""

    case: onnx_backend.Case
    data: list[tuple[list[Any], list[Any]]]
    native: Case


@pytest.fixture(scope="module")
def emitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Emitted], Library]:
    folder = tmp_path_factory.mktemp("suite")
    found = []
    for case in onnx_backend.cases():
        model, data = case.load()
        if not case.name.startswith("node/") or not _holds_arrays(data):
            continue
        source = folder / "model.onnx"
        source.write_bytes(model.SerializeToString())
        try:
            native = Case(import_onnx(source).program.main)
        except CompileError:
            continue
        found.append(Emitted(case, data, native))
    return found, Library([item.native for item in found], folder)


def _holds_arrays(data: list[tuple[list[Any], list[Any]]]) -> bool:
    values = (value for inputs, outputs in data for value in (*inputs, *outputs))
    return all(isinstance(value, np.ndarray) and value.dtype.kind in "fib" for value in values)


@pytest.mark.slow
def test_passes_what_it_emits(emitted: tuple[list[Emitted], Library]) -> None:
    items, library = emitted
    failures = []
    for which, item in enumerate(items):
        graph = item.native.model.graph
        names = [str(v.name) for v in graph.inputs if not v.is_initializer()]
        for inputs, wanted in item.data:
            try:
                for workers in (1, 2):
                    got = library.run(which, dict(zip(names, inputs, strict=True)), workers)
                    onnx_backend.check(item.case, wanted, [got[str(v.name)] for v in graph.outputs])
            except (AssertionError, ValueError) as error:
                failures.append(f"{item.case.name}: {' '.join(str(error).split())[:200]}")
    assert not failures, f"{len(failures)} of {len(items)} cases fail:\n" + "\n".join(failures)
    assert len(items) >= LEAST
