"""Programs built by TVM and run: outputs compared with the reference evaluator's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from miaotui.compiler.codegen.base import Build
from miaotui.compiler.codegen.tvm.backend import PARAMETERS, TvmBackend
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.compiler.weights import WeightStore
from miaotui.runtime.compare import difference
from miaotui.runtime.tvm import TvmModel, TvmRunner


def opened(program: Program, folder: Path, entry: str = "main", threads: int = 1) -> TvmRunner:
    """A runner of one entry of the program, built in ``folder``."""
    return runner(program, built(program, folder), folder, entry, threads)


def built(program: Program, folder: Path, target: Target | None = None) -> Build:
    """The program's library in ``folder``."""
    with WeightStore(folder / "weights.bin") as weights:
        return TvmBackend().build(program, target or Target("cpu"), folder, weights)


def model(
    program: Program, build: Build, folder: Path, entry: str = "main", target: Target | None = None
) -> TvmModel:
    """One entry of what was built in ``folder``."""
    decoding = program.decoding if program.decoding and program.decoding.entry == entry else None
    return TvmModel(
        library=folder / build.entries[entry],
        weights=folder / "weights.bin",
        signature=Entry(program.inputs(entry), program.outputs(entry)),
        parameters=build.settings[PARAMETERS],
        entry=entry,
        state={} if decoding is None else {t.input: t.output for t in decoding.state},
        dims=program.dims,
        target=target or Target("cpu"),
    )


def runner(program: Program, build: Build, folder: Path, entry: str = "main", threads: int = 1) -> TvmRunner:
    """A runner of one entry of what was built in ``folder``."""
    return model(program, build, folder, entry).open(threads)


def check(program: Program, inputs: Mapping[str, Any], runner: TvmRunner) -> None:
    """Every output within the tolerance of its dtype of the reference evaluator's."""
    wanted = evaluate(program.main, dict(inputs))
    got = runner.run(inputs)
    found = [difference(name, got[name], wanted[name]) for name in wanted]
    assert all(item.ok for item in found), "; ".join(map(str, found))
    assert all(np.asarray(got[name]).dtype == np.asarray(wanted[name]).dtype for name in wanted)
