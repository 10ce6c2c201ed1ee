"""``--tune``: schedules are measured once for each kernel, whichever compile asks; faster ones are kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import pytest
from miaotui.compiler.codegen.base import Build
from miaotui.compiler.codegen.tvm.backend import TUNING, untuned
from miaotui.compiler.codegen.tvm.intrinsics import PACKAGE, intrinsics
from miaotui.compiler.codegen.tvm.stopwatch import MeasureError, Stopwatch
from miaotui.compiler.codegen.tvm.tuning import Search, tuning_folder
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import TRIALS, Program
from miaotui.driver import never_slower
from miaotui.passes.pipeline import pipeline
from miaotui.runtime.timing import Speedup
from support.tvm_programs import built, check, runner

X: dict[str, Any] = {"x": np.random.default_rng(0).standard_normal((4, 64), dtype=np.float32)}
Watched = list[int]


def softened(trials: int, rows: int | str = 4) -> Program:
    b = Builder()
    b.output(b.op("ReduceSum", b.op("Exp", b.input("x", (rows, 64))), b.weight("axes", np.array([1]))), "y")
    program = b.program()
    program.main.metadata_props[TRIALS] = str(trials)
    return program


def right(program: Program, folder: Path) -> list[dict[str, Any]]:
    """Built, and it computes what it should; what tuning said of its kernels."""
    build: Build = built(program, folder)
    with runner(program, build, folder) as opened:
        check(program, X, opened)
    found: list[dict[str, Any]] = json.loads(build.settings[TUNING])
    return found


def records() -> int:
    files = tuning_folder("").rglob("database_tuning_record.json")
    return sum(len(file.read_text("utf-8").splitlines()) for file in files)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """How many kernels are timed at each call of the stopwatch, from now on; the cache is empty."""
    monkeypatch.setenv("MIAOTUI_CACHE", str(tmp_path / "cache"))
    calls: Watched = []
    seconds = Stopwatch.seconds

    def counted(self: Stopwatch, libraries: Sequence[Path], *rest: Any) -> list[list[float]]:
        calls.append(len(libraries))
        return seconds(self, libraries, *rest)

    monkeypatch.setattr(Stopwatch, "seconds", counted)
    return calls


def test_measures_once_and_goes_on_where_it_was(tmp_path: Path, watched: Watched) -> None:
    [kernel] = right(softened(2), tmp_path)
    assert kernel["untuned"] > 0
    assert kernel["tuned"] > 0
    assert records() == 2
    before = len(watched)
    assert right(softened(2), tmp_path) == [kernel]
    assert len(watched) == before
    right(softened(3), tmp_path)
    assert records() == 3


def test_what_was_measured_before_an_interruption_counts(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> list[list[float]]:
        if len(watched) == 2:
            raise KeyboardInterrupt
        watched.append(1)
        return [[1e-6]]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stopwatch, "seconds", interrupted)
        right(softened(4), tmp_path)
    [file] = tuning_folder("").rglob("database_tuning_record.json")
    whole = file.read_bytes()
    assert records() == 2
    file.write_bytes(whole + whole[: len(whole) // 3])  # killed while the next one was written
    right(softened(4), tmp_path)
    assert file.read_bytes().startswith(whole)
    assert records() == 4


@pytest.mark.parametrize(("tuned", "kept"), [(0.5e-6, True), (0.99e-6, False), (2e-6, False)])
def test_a_schedule_is_kept_if_it_is_faster_than_none(
    tuned: float, kept: bool, tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretended(_: Stopwatch, libraries: Sequence[Path], *rest: Any) -> list[list[float]]:
        _, *others = libraries
        return [[1e-6] * 4, *([tuned] * 4 for _ in others)] if others else [[tuned] * 4]

    monkeypatch.setattr(Stopwatch, "seconds", pretended)
    assert [(k["kernel"], k["kept"]) for k in right(softened(1), tmp_path)] == [("fused_exp_sum", kept)]


def test_a_kernel_that_can_not_be_searched_stays_as_it_is(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise ValueError("Do not have a default for prim.Let")

    monkeypatch.setattr(Search, "_measure", refuses)
    build = built(softened(1), tmp_path)
    assert untuned(build.settings) == {"fused_exp_sum": "Do not have a default for prim.Let"}


def test_a_kernel_that_crashes_is_left_out(tmp_path: Path, library: Callable[[str, str], Path]) -> None:
    import tvm

    good = library("good", "(int*)0")
    bad = library("bad", "(abort(), (int*)0)")
    runtime = str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so")
    with Stopwatch(runtime) as watch:
        with pytest.raises(MeasureError, match="crashed"):
            watch.seconds([bad], [("float32", (4,))], 0.001)
        with pytest.raises(MeasureError, match="no_such"):
            watch.seconds([tmp_path / "no_such.so"], [], 0.001)
        [seconds] = watch.seconds([good], [("float32", (4,)), ("int64", ()), ("bool", (2, 3))], 0.001)
    assert all(0 < each < 1 for each in seconds)


@pytest.fixture
def library(tmp_path: Path) -> Callable[[str, str], Path]:
    import subprocess

    def made(name: str, expression: str) -> Path:
        source, path = tmp_path / f"{name}.c", tmp_path / f"{name}.so"
        source.write_text(
            "#include <stdlib.h>\n"
            "int __tvm_ffi_main(void* self, const void* arguments, int count, void* result) {\n"
            f"  return {expression} != 0;\n}}\n",
            encoding="utf-8",
        )
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True)
        return path

    return made


def test_other_intrinsics_are_not_registered() -> None:
    before = sys.modules.get(PACKAGE)
    with intrinsics("x86_64"):
        assert f"{PACKAGE}.x86" in sys.modules
        assert before is not None or f"{PACKAGE}.rocm" not in sys.modules
    assert sys.modules.get(PACKAGE) is before


def test_dynamic_kernels_are_left_alone(tmp_path: Path, watched: Watched) -> None:
    assert right(softened(1, "batch"), tmp_path) == []
    assert watched == []


def test_schedules_of_another_machine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="can't be measured"):
        built(softened(1), tmp_path, Target("cuda", "sm_90"))


def test_the_option_stands_for_a_pass() -> None:
    steps = {step.name: step for step in pipeline(CompileOptions(backend="tvm", tune=8))}
    assert steps["tune-kernels"].trials == 8  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match="--tune"):
        CompileOptions(backend="ort", tune=8)


def test_a_program_that_schedules_make_slower_is_left_without(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kernel by itself was faster; the whole is timed against the one without tuning."""

    def pretended(_: Stopwatch, libraries: Sequence[Path], *rest: Any) -> list[list[float]]:
        return [[1e-6] * 4, *([1e-7] * 4 for _ in libraries[1:])]

    monkeypatch.setattr(Stopwatch, "seconds", pretended)
    monkeypatch.setattr(never_slower, "trial", lambda *_, **__: Speedup(0.9, 0.89, 0.91, "slower"))
    options = {"backend": "tvm", "tune": 1, "timing": 0.1}
    with miaotui.compile(softened(0).main, X, output=tmp_path / "m.miaotui", **options) as executable:
        [settings] = [v.settings for v in executable.manifest.variants.values() if v.backend == "tvm"]
    report = json.loads((tmp_path / "m.miaotui" / "report.json").read_text("utf-8"))
    [reverted] = [p["reverted"] for p in report["passes"] if p["name"] == "tune-kernels" and p["reverted"]]
    assert "costs time" in reverted
    assert TUNING not in settings
