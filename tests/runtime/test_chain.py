"""Entries whose segments are run by runners in turn: equal to the whole, and nothing is copied on the way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.artifact import Artifact
from miaotui.compiler.codegen.onnxruntime.backend import OnnxRuntimeBackend
from miaotui.compiler.draft import Draft
from miaotui.compiler.errors import ArtifactError, CompileError, InputError, UnsupportedError
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.examples import example_inputs
from miaotui.compiler.ir.shapes import infer_shapes
from miaotui.compiler.manifest import Manifest, Variant
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.driver.regions import Regions
from miaotui.runtime.chain import ChainModel, ChainRunner
from miaotui.runtime.session import model_of, open_runner
from miaotui.runtime.tensors import address_of
from support.folders import manifest_of, mlp
from support.numerics import assert_close, run_ort
from support.random_graphs import grow

ORT = OnnxRuntimeBackend()


def regions(owners: dict[str, str]) -> Regions:
    """Shared out as it says by the names of nodes, between two that are both ONNX Runtime."""
    return Regions({"ort": ORT, "tvm": ORT}, {"ort": (), "tvm": ()}, lambda *_: lambda n: owners[str(n.name)])


def written(folder: Path, program: Program, owners: dict[str, str]) -> Manifest:
    """A folder of the program in segments that ONNX Runtime runs as they are written."""
    with Draft(folder) as draft:
        build = regions(owners).build(program, Target(), draft.variant("chain"), draft.weights)
        plain = {"graph_optimization_level": "none"}
        parts = {
            entry: tuple(replace(p, file=f"variants/chain/{p.file}", settings=plain) for p in found)
            for entry, found in build.segments.items()
        }
        files = {entry: f"variants/chain/{file}" for entry, file in build.entries.items()}
        variant = Variant("optimized", "cpu", "ort+tvm", files, build.settings, segments=parts)
        return draft.finish(manifest_of(program, {"chain": variant}))


def typed_mlp() -> Program:
    program = mlp()
    infer_shapes(program)
    return program


def alternating(program: Program, seed: int = 0) -> dict[str, str]:
    choice = random.Random(seed)
    owners = {str(node.name): choice.choice(("ort", "tvm")) for node in program.main.graph}
    first, *_, last = owners
    return owners | {first: "ort", last: "tvm"}


@pytest.fixture(params=[3, 5, 11, 20])
def grown(request: pytest.FixtureRequest) -> Program:
    return grow(request.param, 12)


def test_a_chain_in_a_folder_gives_what_the_whole_gives_bit_for_bit(tmp_path: Path, grown: Program) -> None:
    written(tmp_path / "m", grown, alternating(grown))
    with Artifact(tmp_path / "m") as artifact, open_runner(artifact, threads=1) as runner:
        assert isinstance(runner, ChainRunner) and len(runner._steps) > 1
        for batch in (1, 3):
            inputs = example_inputs(grown, sizes={"batch": batch})
            wanted = run_ort(grown.main, inputs)
            found = runner.run(inputs)
            assert list(found) == [spec.name for spec in grown.outputs()]
            assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[tuple[Program, ChainRunner, Artifact]]:
    program = typed_mlp()
    owners = {str(n.name): "tvm" if n.op_type == "Relu" else "ort" for n in program.main.graph}
    written(tmp_path / "m", program, owners)
    with Artifact(tmp_path / "m") as artifact, open_runner(artifact, threads=1) as runner:
        assert isinstance(runner, ChainRunner)
        yield program, runner, artifact


def test_segments_read_where_the_ones_before_them_wrote(
    opened: tuple[Program, ChainRunner, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    ort = pytest.importorskip("onnxruntime")
    _, runner, _ = opened
    given: list[int] = []
    taken: list[int] = []
    for step in runner._steps:
        monkeypatch.setattr(step.runner, "run_arrays", spied(step.runner.run_arrays, given, taken))
    x = np.ones((2, 32), np.float32)
    runner.run_arrays({"x": x})
    assert len(runner._steps) > 2 and taken == [address_of(x), *given[:-1]]
    # and ONNX Runtime itself neither copies what it is given nor what it gives
    array = runner._steps[0].runner.run_arrays({"x": x})
    value = next(iter(array.values()))
    assert not value.flags.owndata and value.flags.writeable
    assert ort.OrtValue.ortvalue_from_numpy(value).data_ptr() == address_of(value)


def spied(run: Any, given: list[int], taken: list[int]) -> Any:
    def spy(arrays: Any) -> Any:
        taken.extend(map(address_of, arrays.values()))
        found = run(arrays)
        given.extend(map(address_of, found.values()))
        return found

    return spy


def test_a_chain_behaves_like_any_runner(opened: tuple[Program, ChainRunner, Artifact]) -> None:
    program, runner, artifact = opened
    x = np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)
    wanted = evaluate(program.main, {"x": x})
    assert_close(runner.run({"x": x}), wanted)
    y = np.empty_like(next(iter(wanted.values())))
    runner.run_bound(runner.bind({"x": x}, {"y": y}))
    assert_close({"y": y}, wanted)
    with pytest.raises(InputError, match="float32"):
        runner.run({"x": x.astype(np.float64)})
    model = model_of(artifact)
    tap = model.computed()[0]
    with model.open(1, [tap, "no such value"]) as tapped:
        assert set(tapped.run({"x": x})) == {"y", tap}
    runner.close()
    with pytest.raises(CompileError, match="was closed"):
        runner.run({"x": x})


def test_segments_that_do_not_fit_each_other_are_refused(
    opened: tuple[Program, ChainRunner, Artifact],
) -> None:
    model = model_of(opened[2])
    assert isinstance(model, ChainModel)
    turned = replace(model, models=model.models[::-1])
    with pytest.raises(ArtifactError, match="which nothing before it gives"):
        turned.open(1)
    with pytest.raises(ArtifactError, match="output 'y' is given by no segment"):
        replace(model, models=model.models[:-1]).open(1)


def test_a_segment_whose_file_is_gone_is_named(tmp_path: Path) -> None:
    program = typed_mlp()
    manifest = written(tmp_path / "m", program, alternating(program))
    lost = manifest.variants["chain"].segments["main"][-1].file
    (tmp_path / "m" / lost).unlink()
    with pytest.raises(ArtifactError, match=Path(lost).name):
        Artifact(tmp_path / "m")


def test_an_open_chain_outlives_its_folder(tmp_path: Path) -> None:
    program = typed_mlp()
    written(tmp_path / "m", program, alternating(program))
    with Artifact(tmp_path / "m") as artifact:
        written(tmp_path / "m", grow(3, 6), alternating(grow(3, 6)))
        with open_runner(artifact, threads=1) as runner:
            assert runner.run({"x": np.ones((1, 32), np.float32)})["y"].shape[0] == 1


def test_what_can_not_be_shared_out_is_refused(tmp_path: Path) -> None:
    program = typed_mlp()
    with Draft(tmp_path / "m") as draft, pytest.raises(UnsupportedError, match="all of it is ort's"):
        alone = {str(node.name): "ort" for node in program.main.graph}
        regions(alone).build(program, Target(), draft.variant("chain"), draft.weights)


def test_weights_that_segments_share_are_stored_once(tmp_path: Path) -> None:
    from miaotui.compiler.ir.builder import Builder

    b = Builder()
    w = b.weight("w", np.random.default_rng(0).standard_normal((32, 32)))
    x = b.op("MatMul", b.input("x", ("batch", 32)), w, name="first")
    b.output(b.op("MatMul", b.op("Relu", x, name="between"), w, name="second"), "y")
    program = b.program()
    owners = {"first": "ort", "between": "tvm", "second": "tvm"}
    manifest = written(tmp_path / "m", program, owners)
    assert manifest.files["weights/weights.bin"].size == 32 * 32 * 4
    parts = manifest.variants["chain"].segments["main"]
    models = [ir.load(tmp_path / "m" / part.file) for part in parts]
    assert [set(model.graph.initializers) for model in models] == [{"w"}, {"w"}]
