"""The ONNX project's backend suite through TVM, many cases in a library: what there are rules for passes.

All other cases are in ``exceptions.txt`` with the reason. A sample of every operator is run, or all cases
with MIAOTUI_WHOLE_SUITE=1; ``python tests/tvm/test_tvm_conformance.py`` runs them all and writes the table.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import onnx
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from miaotui.compiler.codegen.tvm.support import refused
from miaotui.compiler.errors import CompileError
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.frontends.onnx import import_onnx
from support import tvm_programs
from support.onnx_backend import Case, cases, check

TABLE = Path(__file__).with_name("exceptions.txt")
TOGETHER = 40
"""Cases in a library."""

EVERY = 6
"""Of the cases of an operator one in so many is in the sample."""

LEAST = 150
"""Cases of the sample that pass."""

DataSets: TypeAlias = list[tuple[list[Any], list[Any]]]
Item: TypeAlias = tuple[Case, Program, DataSets]


def exceptions() -> dict[str, str]:
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if line and not line.startswith("#"))


def sample() -> list[Case]:
    """Some cases of every operator; all of them if the environment asks for it."""
    if os.environ.get("MIAOTUI_WHOLE_SUITE"):
        return list(cases())
    by_operator: dict[tuple[str, ...], list[Case]] = {}
    for case in cases():
        if case.name.startswith("node/") and "_expanded" not in case.name:
            operators = {node.op_type for node in case.load()[0].graph.node}
            by_operator.setdefault(tuple(sorted(operators)), []).append(case)
    return [case for found in by_operator.values() for case in found[::EVERY]]


def verdicts(chosen: Iterable[Case], folder: Path) -> Iterator[tuple[str, str]]:
    """Each case's name, and empty if it passes, else why it does not."""
    items = []
    for case in chosen:
        model, data = case.load()
        reason = ""
        arrays = [value for inputs, outputs in data for value in (*inputs, *outputs)]
        if not all(isinstance(value, (np.ndarray, np.generic)) for value in arrays):
            reason = "its values are no tensors"
        else:
            source = folder / "model.onnx"
            source.write_bytes(model.SerializeToString())
            try:
                program = import_onnx(source).program
                problems = refused(program, Target("cpu"))
                reason = f"{problems[0].place.split()[-1]} {problems[0].fact}" if problems else ""
            except CompileError as error:
                reason = one_line(error)
        if reason:
            yield case.name, f"refused: {reason}"
        else:
            items.append((case, program, data))
    for first in range(0, len(items), TOGETHER):
        yield from run_together(items[first : first + TOGETHER], folder)


def run_together(items: Sequence[Item], folder: Path) -> Iterator[tuple[str, str]]:
    """Verdicts of cases that are entries of one program; halved until what fails to compile is alone."""
    names = ["main", *(f"case_{n}" for n in range(1, len(items)))]
    dims = {name: size for _, program, _ in items for name, size in program.dims.items()}
    whole = Program({n: program.main for n, (_, program, _) in zip(names, items, strict=True)}, dims)
    try:
        build = tvm_programs.built(whole, folder)
    except CompileError as error:
        if len(items) == 1:
            yield items[0][0].name, f"wrong: {one_line(error)}"
            return
        half = len(items) // 2
        yield from run_together(items[:half], folder)
        yield from run_together(items[half:], folder)
        return
    for name, (case, _, data) in zip(names, items, strict=True):
        try:
            with tvm_programs.runner(whole, build, folder, name) as runner:
                for inputs, wanted in data:
                    feeds = {s.name: np.asarray(v) for s, v in zip(runner.inputs, inputs, strict=True)}
                    got = runner.run(feeds)
                    check(case, wanted, [got[spec.name] for spec in runner.outputs])
        except (CompileError, AssertionError) as error:
            yield case.name, f"wrong: {one_line(error)}"
        else:
            yield case.name, ""


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def test_what_has_rules_passes_and_all_else_is_listed(tmp_path: Path) -> None:
    if onnx.__version__ not in TABLE.read_text(encoding="utf-8"):
        pytest.skip(f"the table was not made with onnx {onnx.__version__}")
    listed, found = exceptions(), dict(verdicts(sample(), tmp_path))
    failing = {name: why for name, why in found.items() if why}
    assert {name: why for name, why in failing.items() if name not in listed} == {}
    assert [name for name in found if name in listed and name not in failing] == [], "listed, but pass"
    assert [name for name, why in failing.items() if why.split(":")[0] != listed[name].split(":")[0]] == []
    assert len(found) - len(failing) >= LEAST


def test_most_of_the_suite_passes() -> None:
    assert len(cases()) - len(exceptions()) >= 1122
    assert sum(why.startswith("wrong") for why in exceptions().values()) <= 1


if __name__ == "__main__":
    with TemporaryDirectory() as scratch:
        reasons = {name: why for name, why in verdicts(cases(), Path(scratch)) if why}
    head = f"# {len(reasons)} of {len(cases())} cases that TVM does not pass (onnx {onnx.__version__})"
    body = "\n".join(f"{name}\t{why}" for name, why in sorted(reasons.items()))
    TABLE.write_text(f"{head}\n{body}\n", encoding="utf-8")
