"""Every cut equals the whole: stages and replicas give bit for bit what the program gives in one piece."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.cost.stages import Chain, Link, stage_bounds
from miaotui.compiler.dialect.collective import REFERENCE
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.examples import example_inputs
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.parallel.check_plan import read_plan
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.sharding import Sharding, Split, set_sharding, sharding, stage
from miaotui.compiler.program import Program
from miaotui.driver.context import context_of
from miaotui.driver.partition import write_plan
from miaotui.passes.base import PassContext
from miaotui.passes.observers import run_pipeline
from miaotui.passes.partition.pipeline import PipelineStages
from miaotui.passes.pipeline import pipeline
from miaotui.runtime.parallel.runner import ParallelModel
from support.cuts import Plain
from support.folders import mlp
from support.language_models import DECODERS, build, imported
from support.numerics import run_ort
from support.random_graphs import grow


def run_cut(
    program: Program, mesh: Mesh, folder: Path, inputs: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    write_plan(program, mesh, Plain(), Target(), folder)
    signature = Entry(program.inputs(), program.outputs())
    with ParallelModel(folder=folder, signature=signature, dims=program.dims).open(1) as runner:
        return dict(runner.run(inputs))


@pytest.mark.parametrize("seed", [3, 5, 11])
def test_stages_give_what_the_whole_gives(seed: int, tmp_path: Path) -> None:
    program = grow(seed, 12)
    inputs = example_inputs(program, sizes={"batch": 3})
    wanted = run_ort(program.main, inputs)
    for stages in (1, 2, 4):
        found = run_cut(program, Mesh(pp=stages), tmp_path / str(stages), inputs)
        assert {name: a.tobytes() for name, a in found.items()} == {n: a.tobytes() for n, a in wanted.items()}


def branches(widths: tuple[int, ...]) -> Program:
    """Products of one input, side by side, joined at the end."""
    random = np.random.default_rng(0)
    b = Builder()
    x = b.input("x", (64, 2048))
    weights = [b.weight(f"w{i}", random.standard_normal((2048, width))) for i, width in enumerate(widths)]
    b.output(b.op("Concat", *(b.op("MatMul", x, w) for w in weights), axis=1), "y")
    return b.program()


def test_branches_are_placed_one_by_one_where_their_order_binds(tmp_path: Path) -> None:
    program = branches((256, 512, 256))
    slow = []
    for placement in ("order", "auto"):
        step = PipelineStages(stages=2).with_options(f"placement={placement}")
        (note,) = step.run(program, PassContext()).hits
        slow.append(max(note.facts["seconds"]))
    assert slow[1] < 0.75 * slow[0], "a half and a half, not three quarters and one"
    assert [stage(node) for node in program.main.graph] in ([0, 1, 0, 1], [1, 0, 1, 1])
    inputs = {"x": np.random.default_rng(1).standard_normal((64, 2048)).astype(np.float32)}
    found = run_cut(program, Mesh(pp=2), tmp_path, inputs)
    assert found["y"].tobytes() == run_ort(program.main, inputs)["y"].tobytes()


def test_uneven_batches_over_replicas_equal_the_whole(tmp_path: Path) -> None:
    program = mlp(layers=3)
    x = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)
    whole = run_cut(program, Mesh(), tmp_path / "whole", {"x": x})
    found = run_cut(program, Mesh(dp=2, pp=2), tmp_path / "cut", {"x": x})
    np.testing.assert_allclose(found["y"], whole["y"], rtol=1e-5, atol=1e-4)


def test_impossible_meshes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="use at most 6"):
        write_plan(mlp(), Mesh(pp=7), OnnxRuntimeBackend(), Target(), tmp_path / "a")


def slowest(chain: Chain, bounds: list[int], link: Link, limit: float) -> float:
    found = 0.0
    for begin, end in itertools.pairwise(bounds):
        if chain.memory[begin:end].sum() > limit:
            return np.inf
        receive = link.latency + chain.live[begin] / link.bandwidth if begin and chain.live[begin] else 0.0
        found = max(found, float(chain.seconds[begin:end].sum()) + receive)
    return found


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stages_are_the_best_of_all_cuts(stages: int) -> None:
    rng = np.random.default_rng(stages)
    for _ in range(30):
        count = int(rng.integers(stages, 9))
        memory = rng.integers(0, 5, count).astype(float)
        chain = Chain(rng.random(count) * 1e-3, memory, rng.integers(0, 10**6, count + 1).astype(float))
        link, limit = Link(1e-5, 1e9), float(rng.integers(4, 16))
        cuts = itertools.combinations(range(1, count), stages - 1)
        best = min((slowest(chain, [0, *c, count], link, limit) for c in cuts), default=np.inf)
        if np.isinf(best):
            with pytest.raises(OptionError, match="fit no"):
                stage_bounds(chain, stages, link, [limit] * stages)
        else:
            bounds = stage_bounds(chain, stages, link, [limit] * stages)
            assert slowest(chain, bounds, link, limit) == pytest.approx(best, rel=1e-9)


def test_a_faster_device_gets_more() -> None:
    chain = Chain(np.ones(12), np.zeros(12), np.zeros(13))
    assert stage_bounds(chain, 2, speeds=[3.0, 1.0]) == [0, 9, 12]


def test_collectives_compute_what_their_names_say() -> None:
    given = [np.arange(6.0).reshape(2, 3), np.ones((2, 3))]
    np.testing.assert_array_equal(REFERENCE["AllReduce"](given, 0, ())[1], given[0] + 1)
    np.testing.assert_array_equal(REFERENCE["AllGather"](given, 1, (3, 3))[0], np.hstack(given))
    first, second = REFERENCE["ReduceScatter"](given, 1, (1, 2))
    np.testing.assert_array_equal(np.hstack([first, second]), given[0] + 1)
    assert first.shape == (2, 1)


def test_a_sharding_is_kept_with_its_value() -> None:
    split = Split.of("tp", np.array([0, 0, 1, 1, 0, 1]), np.array([1, 1, 2, 2, 2, 2]))
    assert split.held(0).tolist() == [0, 1, 4] and split.sizes(2) == (3, 4)
    value = mlp().main.graph.inputs[0]
    set_sharding(value, Sharding({1: split}, "tp"))
    assert sharding(value) == Sharding({1: split}, "tp")


def test_a_decoder_is_cut_with_its_cache(tmp_path: Path) -> None:
    program = imported(build(*DECODERS["llama"]))
    options = CompileOptions(backend="ort")
    run_pipeline(program, pipeline(options), context_of(options), [])
    ids = {"input_ids": np.random.default_rng(0).integers(0, 300, (3, 9))}
    whole = run_cut(program, Mesh(), tmp_path / "whole", ids)
    for mesh in (Mesh(pp=2), Mesh(dp=2, pp=2)):
        folder = tmp_path / str(mesh)
        found = run_cut(program, mesh, folder, ids)
        for name, wanted in whole.items():
            assert np.array_equal(found[name], wanted)
        plan = read_plan(folder)
        assert [len(share.state["decode"]) for share in plan.shares] == [2, 2]
        held = sum(share.memory for share in plan.shares)  # small constants may lie in both
        assert held == pytest.approx(read_plan(tmp_path / "whole").shares[0].memory, rel=0.01)
