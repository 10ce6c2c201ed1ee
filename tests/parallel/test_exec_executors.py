"""One interface: threads and processes give what the whole program gives, for any rows and callers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import miaotui
import numpy as np
import pytest
from miaotui.compiler.artifact import record_file, walk_files
from miaotui.compiler.errors import (
    ArtifactError,
    CompileError,
    InputError,
    OptionError,
    UnsupportedError,
    WorkerError,
)
from miaotui.compiler.manifest import Entry, Manifest, Variant
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.plan import PLAN, Collective
from miaotui.runtime.parallel import ray_cluster
from miaotui.runtime.parallel.meeting import combined
from miaotui.runtime.parallel.options import ParallelOptions
from miaotui.runtime.parallel.runner import ParallelModel, ParallelRunner
from support.plans import CLASSES, WIDTH, run_whole, spec, write_plan
from support.stateful_plans import DECODING, SIGNATURE, write_greedily, write_stateful_plan

MAIN = Entry((spec("x", WIDTH),), (spec("h", WIDTH), spec("y", CLASSES)))


def batch(number: int, rows: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal((rows, WIDTH)).astype(np.float32)


def check(found: dict[str, np.ndarray], x: np.ndarray) -> None:
    assert list(found) == ["h", "y"]
    for name, wanted in run_whole(x).items():
        assert found[name].shape == wanted.shape
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture(
    params=[
        ("threads", Mesh(dp=2, pp=2, tp=2)),
        ("processes", Mesh(dp=2, pp=2)),
        ("processes{collectives=gloo}", Mesh(pp=2, tp=2)),
    ],
    ids=str,
)
def runner(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ParallelRunner]:
    executor, mesh = request.param
    write_plan(tmp_path, mesh)
    with ParallelModel(tmp_path, MAIN, options=ParallelOptions.parse(executor)).open(1) as opened:
        yield opened


def test_any_count_of_rows_from_several_callers(runner: ParallelRunner) -> None:
    def call(number: int) -> None:
        x = batch(number, number % 8)
        check(runner.run({"x": x}), x)

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(call, range(24)))
    large = batch(1, 5000)  # beyond what shared memory had room for so far
    check(runner.run({"x": large}), large)


def test_an_input_that_does_not_fit_is_refused_before_it_is_dealt_out(tmp_path: Path) -> None:
    write_plan(tmp_path)
    model = ParallelModel(tmp_path, MAIN)
    with model.open(1) as runner, pytest.raises(InputError, match="axis 1, not 32"):
        runner.run({"x": np.zeros((2, 7), np.float32)})
    with pytest.raises(CompileError, match="was closed"):
        runner.run({"x": batch(0, 1)})


def test_a_plan_that_no_executor_can_run_is_refused_by_name(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    share = plan.shares[0]
    steps = tuple(
        replace(step, axis="dp") if isinstance(step, Collective) else replace(step, backend="abacus")
        for step in share.steps["main"]
    )
    changed = replace(plan, shares=(replace(share, steps={"main": steps}), *plan.shares[1:]))
    (tmp_path / PLAN).write_text(changed.dumps())
    with pytest.raises(UnsupportedError) as caught:
        ParallelModel(tmp_path, MAIN).open(1)
    assert "'reduce0' runs along dp" in str(caught.value) and "backend 'abacus'" in str(caught.value)


def folder_of(folder: Path, entry: str, signature: Entry, **facts: object) -> Path:
    """An executable folder around the plan that lies in variants/cpu-ort."""
    name = "variants/cpu-ort/plan.json"
    variant = Variant("optimized", "cpu", "ort", {entry: name})
    manifest = Manifest("toy", {entry: signature}, {"cpu-ort": variant}, "cpu-ort", **facts)  # type: ignore[arg-type]
    files = {file: record_file(folder / file) for file in walk_files(folder)}
    (folder / "manifest.json").write_text(replace(manifest, files=files).dumps())
    return folder


@pytest.mark.parametrize("executor", ["threads", "processes{timeout=60}"])
def test_a_partitioned_folder_is_opened_run_and_generates_like_any_other(
    tmp_path: Path, executor: str
) -> None:
    write_plan(tmp_path / "variants/cpu-ort", Mesh(pp=2))
    with miaotui.open(folder_of(tmp_path, "main", MAIN), executor=executor) as executable:
        x = batch(3, 3)
        check(executable.run({"x": x}), x)
        check(executable(x), x)
    write_stateful_plan(tmp_path / "text/variants/cpu-ort", Mesh(pp=2))
    text = folder_of(tmp_path / "text", "decode", SIGNATURE, decoding=DECODING)
    with miaotui.open(text, executor=executor) as executable:
        prompts = [[3, 1, 4], [1, 5, 9, 2]]
        found = executable.generate(prompts, max_tokens=6)
        assert [list(one.ids) for one in found] == [write_greedily(prompt, 6) for prompt in prompts]


def test_a_file_that_changed_under_the_plan_is_refused(tmp_path: Path) -> None:
    plan = write_plan(tmp_path)
    (tmp_path / next(iter(plan.files))).unlink()
    with pytest.raises(ArtifactError, match="can't be read"):
        ParallelModel(tmp_path, MAIN, options=ParallelOptions("processes")).open(1)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("fibers", "'fibers' is not known; one of threads, processes, ray"),
        ("ray{addres=auto}", "'addres' is not known; one of timeout"),
        ("processes{timeout=soon}", "'soon' is no float"),
        ("threads{retries=-1,timeout=0}", "0.0 is less than 0.001"),
        ("threads{", "does not parse"),
    ],
)
def test_executors_that_do_not_exist_are_refused(text: str, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        ParallelOptions.parse(text)


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("InvalidAuthToken: Authentication token is missing", "set RAY_AUTH_MODE=token"),
        ("Ray Client requires pip package `ray[client]`", "pip install 'ray[client]'"),
        ("timed out", "start one with `ray start --head`"),
    ],
)
def test_a_cluster_that_lets_nobody_in_is_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, said: str, fix: str
) -> None:
    class Ray:
        def is_initialized(self) -> bool:
            return False

        def init(self, **options: object) -> None:
            raise ConnectionError("Failed to connect") from RuntimeError(said)

    monkeypatch.setattr(ray_cluster, "require", lambda *_, **__: Ray())
    with pytest.raises(WorkerError, match=r"address '1\.2\.3\.4:5': Failed to connect") as caught:
        ray_cluster.connected(ParallelOptions("ray", address="1.2.3.4:5"))
    assert fix in str(caught.value)


def test_collectives_give_every_rank_its_due() -> None:
    given = [np.arange(12, dtype=np.float16).reshape(3, 4) * 10**place for place in range(3)]
    reduce = Collective("r", "AllReduce", "tp", "a", "b", spec("a", 4))
    scatter = replace(reduce, op="ReduceScatter", dim=1, sizes=(2, 1, 1))
    gather = replace(reduce, op="AllGather", dim=1, sizes=(4, 4, 4))
    whole = np.sum(given, 0, np.float32).astype(np.float16)
    for place in range(3):
        np.testing.assert_array_equal(combined(reduce, given, place), whole)
        np.testing.assert_array_equal(combined(gather, given, place), np.concatenate(given, 1))
    parts = [combined(scatter, given, place) for place in range(3)]
    assert [part.shape for part in parts] == [(3, 2), (3, 1), (3, 1)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
