"""Whole programs as native code: lowered, built into one library, run entry by entry."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from miaotui.compiler.codegen.native.backend import NativeBackend
from miaotui.compiler.codegen.native.library import LIBRARY, WEIGHTS
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.compiler.weights import WeightStore
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.lowering.native import LOWER_NATIVE
from miaotui.runtime.native import NativeModel, NativeRunner
from support.numerics import scaled_error
from support.quick_c import plain

Arrays = Mapping[str, np.ndarray[Any, Any]]

CHECKED = (*plain(), "-Werror", *os.environ.get("MIAOTUI_TEST_CFLAGS", "").split())
"""Compiled for tests: warnings are errors; optimizing would take longer than running."""


def lowered(program: Program) -> Program:
    """A copy after the native lowering and cleanup."""
    copy, context = program.clone(), PassContext()
    for step in (*LOWER_NATIVE, *CLEANUP):
        step.run(copy, context)
    return copy


def build(program: Program, folder: Path, flags: tuple[str, ...] = CHECKED) -> str:
    """Build a lowered program; the text of its model.c."""
    folder.mkdir(parents=True, exist_ok=True)
    with WeightStore(folder / "weights.bin") as store:
        NativeBackend(flags).build(program, Target(), folder, store)
    return (folder / "model.c").read_text(encoding="utf-8")


@contextmanager
def opened(program: Program, folder: Path, entry: str = "main", threads: int = 1) -> Iterator[NativeRunner]:
    """A runner of an entry that ``build`` wrote."""
    decoding = program.decoding
    state = {t.input: t.output for t in decoding.state} if decoding and decoding.entry == entry else {}
    signature = Entry(program.inputs(entry), program.outputs(entry))
    model = NativeModel(folder / LIBRARY, folder / WEIGHTS, signature, entry, state, program.dims)
    with model.open(threads) as runner:
        yield runner


def errors(program: Program, folder: Path, entry: str, inputs: Arrays, threads: int = 1) -> dict[str, float]:
    """Scaled error of every output of a built entry against the reference semantics of the same graph."""
    with opened(program, folder, entry, threads) as runner:
        actual = runner.run(inputs)
    expected = evaluate(program.entries[entry], inputs)
    for name, array in expected.items():
        assert actual[name].shape == array.shape, name
        assert actual[name].dtype == array.dtype, name
    return {name: scaled_error(actual[name], array) for name, array in expected.items()}
