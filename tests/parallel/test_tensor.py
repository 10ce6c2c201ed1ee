"""Layers over tensor shards equal the whole: heads, channels, vocabulary, cache."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.errors import CompileError, OptionError, UnsupportedError
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.examples import example_inputs
from miaotui.compiler.ir.shapes import infer_shapes
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.plan import Plan
from miaotui.compiler.parallel.sharding import sharding
from miaotui.compiler.parallel.simulate import simulate
from miaotui.compiler.parallel.steps import is_collective
from miaotui.compiler.program import Program
from miaotui.driver.context import context_of
from miaotui.driver.partition import write_plan
from miaotui.frontends.pytorch import import_module
from miaotui.passes.base import PassContext, PassResult
from miaotui.passes.observers import run_pipeline
from miaotui.passes.partition.groups import head_owners
from miaotui.passes.partition.ranks import rank_programs
from miaotui.passes.partition.tensor import TensorParallel
from miaotui.passes.pipeline import pipeline
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.parallel.runner import ParallelModel, ParallelRunner
from support.exports import build as build_encoder
from support.exports import example
from support.language_models import DECODERS, TRANSLATORS, VOCABULARY, build, imported

Array = np.ndarray[Any, Any]

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3]]


@functools.cache
def source(family: str) -> Program:
    return imported(build(*{**DECODERS, **TRANSLATORS}[family]))


@functools.cache
def lowered(family: str, precision: str = "fp32", stop: str = "", device: str = "cpu") -> Program:
    """A family's program as the pipeline lowers it, or as it is in front of the pass ``stop``."""
    program = source(family).clone()
    options = CompileOptions(target=Target(device), backend="ort", precision=precision)
    steps = pipeline(options)
    names = [step.name for step in steps]
    run_pipeline(program, steps[: names.index(stop)] if stop else steps, context_of(options), [])
    infer_shapes(program)
    return program


def split(program: Program, ranks: int) -> tuple[Program, PassResult]:
    whole = program.clone()
    return whole, TensorParallel(size=ranks, vocabulary=16).run(whole, PassContext())


def error(found: Array, wanted: Array) -> float:
    """Scaled."""
    return float(np.abs(found.astype(np.float64) - wanted).max() / max(1.0, np.abs(wanted).max()))


def inputs_of(program: Program, entry: str) -> dict[str, Array]:
    """Two rows; of ``decode``, whose caches hold different numbers of tokens."""
    if entry != "decode":
        return dict(example_inputs(program, entry, sizes={"batch": 2}))
    assert program.decoding is not None
    rng = np.random.default_rng(0)
    known: dict[str, Array] = {
        program.decoding.tokens: rng.integers(0, VOCABULARY, (2, 3)),
        program.decoding.lengths: np.array([4, 2]),
        program.decoding.select: np.array([[0, 2], [1, 2]]),
    }
    sizes = {"batch": 2, "capacity": 16}
    for spec in program.inputs("decode"):
        if spec.name not in known:
            shape = [sizes.get(d, 5) if isinstance(d, str) else int(d or 0) for d in spec.shape or ()]
            known[spec.name] = rng.standard_normal(shape).astype(np.float32)
    return known


@pytest.mark.parametrize(
    ("family", "ranks", "precision", "stop"),
    [
        ("llama", 2, "fp32", ""),  # gated, KV heads of their own
        ("llama", 4, "fp32", ""),  # a KV head on two ranks
        ("llama", 2, "fp32", "group-query-attention"),  # the semantic operators
        ("gpt2", 4, "fp32", ""),  # fused query, key and value, biases, tied tables
        ("gpt2", 2, "int4", ""),  # blocks
        ("llama", 2, "fp16", ""),  # stored in 16 bits
        ("gpt2", 2, "fp16", ""),
        ("gpt2", 2, "int8", ""),  # rounded by the greatest element: gathered in front of that
        ("falcon", 2, "fp32", ""),  # one KV head, on all ranks
        ("bloom", 2, "fp32", ""),  # a bias for every head
    ],
)
def test_ranks_together_give_what_the_whole_gives(family: str, ranks: int, precision: str, stop: str) -> None:
    program = lowered(family, precision, stop)
    whole, result = split(program, ranks)
    assert result.changed
    programs = rank_programs(whole, ranks)
    for entry in program.entries:
        inputs = inputs_of(program, entry)
        wanted = evaluate(program.entries[entry], inputs)
        annotated = evaluate(whole.entries[entry], inputs)
        found = simulate(whole, programs, inputs, entry)
        for name, array in wanted.items():
            assert error(annotated[name], array) < 1e-6
            assert error(found[name], array) < 1e-5


@pytest.mark.slow
def test_an_encoder_and_its_decoder_are_split() -> None:
    program = lowered("t5")
    whole, result = split(program, 2)
    # an encoder of 2 layers, a decoder of 2 with keys of its own and of the source, together and by entry
    assert sum("query" in note.text for note in result.hits) == 12
    for entry in program.entries:
        inputs = inputs_of(program, entry)
        wanted = evaluate(program.entries[entry], inputs)
        found = simulate(whole, rank_programs(whole, 2), inputs, entry)
        assert all(error(found[name], array) < 1e-5 for name, array in wanted.items())


def test_ranks_take_their_heads_of_keys_that_are_an_input() -> None:
    rng, b = np.random.default_rng(0), Builder()
    x, keys = b.input("x", ("batch", "tokens", 12)), b.input("keys", ("batch", "source", 12))
    into, out = (b.weight(name, rng.standard_normal((12, 12)).astype(np.float32)) for name in ("in", "out"))
    mixed = b.op("Attention", b.op("MatMul", x, into), keys, keys, q_num_heads=3, kv_num_heads=3)
    b.output(b.op("MatMul", mixed, out), "y")
    program = b.program()
    whole, _ = split(program, 3)
    inputs = example_inputs(program, sizes={"batch": 2, "tokens": 3, "source": 5})
    wanted = evaluate(program.main, inputs)["y"]
    assert error(simulate(whole, rank_programs(whole, 3), inputs)["y"], wanted) < 1e-5
    assert [note.text for note in TensorParallel(3).run(program, PassContext()).hits] == [
        "1 query and 1 KV heads of 3 and 3 a rank"
    ]


def test_ranks_hold_their_own_heads_of_the_cache_and_half_of_the_weights() -> None:
    program = lowered("llama")
    whole, _ = split(program, 2)
    cache = next(v for v in whole.entries["decode"].graph.inputs if v.name == "past_key_0")
    assert sharding(cache).splits[1].held(1).tolist() == [1]
    first, second = rank_programs(whole, 2)
    assert first.inputs("decode")[-1].shape == ("batch", 1, "capacity", 16)
    sizes = [sum(_weights(p).values()) for p in (program, first, second)]
    assert max(sizes[1:]) < 0.52 * sizes[0]
    assert _weights(first).keys() == _weights(second).keys()


def _weights(program: Program) -> dict[str, int]:
    values = program.entries["decode"].graph.initializers.values()
    return {str(v.name): v.const_value.nbytes for v in values if v.const_value and v.const_value.size > 99}


def gated(channels: int, wide: int = 8, outputs: int = 6) -> Program:
    """x: float32[batch, 8] through a gated MLP and a projection with a bias."""
    rng, b = np.random.default_rng(0), Builder()
    x = b.input("x", ("batch", wide))
    weights = [rng.standard_normal(s).astype(np.float32) for s in ((wide, 2 * channels), (channels, outputs))]
    halves = b.ops(
        "Split", b.op("MatMul", x, b.weight("both", weights[0])), outputs=2, axis=-1, num_outputs=2
    )
    hidden = b.op("Mul", b.op("Sigmoid", halves[0]), halves[1])
    bias = b.weight("bias", rng.standard_normal(outputs).astype(np.float32))
    b.output(b.op("Gemm", hidden, b.weight("down", weights[1]), bias), "y")
    return b.program()


def test_channels_need_not_be_a_multiple_of_the_ranks() -> None:
    program = gated(7)
    whole, result = split(program, 3)
    assert [str(note) for note in result.hits] == [f"{result.hits[0].node}: 7 channels over 3 ranks"]
    programs = rank_programs(whole, 3)
    x = {"x": np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)}
    assert error(simulate(whole, programs, x)["y"], evaluate(program.main, x)["y"]) < 1e-5
    held = [p.main.graph.initializers["down"].shape for p in programs]
    assert [list(shape or ()) for shape in held] == [[3, 6], [2, 6], [2, 6]]
    # the bias is added once, behind the sum
    kinds = [node.op_type for node in whole.main.graph if is_collective(node) or node.op_type == "Add"]
    assert kinds == ["AllReduce", "Add"]


def test_a_model_with_nothing_to_split_is_refused_with_the_reason() -> None:
    with pytest.raises(
        UnsupportedError, match=r"none of its layers.*by channels: 3 channels are less than one for each"
    ):
        split(gated(3), 4)


@pytest.mark.parametrize(
    ("queries", "keys", "ranks", "owners"),
    [
        (4, 2, 2, [0, 0, 1, 1]),
        (4, 2, 4, [0, 1, 2, 3]),
        (9, 3, 9, list(range(9))),
        (4, 1, 2, [0, 0, 1, 1]),
        (9, 3, 2, None),
        (12, 3, 4, None),
        (12, 3, 6, [i // 2 for i in range(12)]),
    ],
)
def test_each_rank_has_equal_shares_of_groups(
    queries: int, keys: int, ranks: int, owners: list[int] | None
) -> None:
    found = head_owners(queries, keys, ranks)
    assert (None if found is None else found.tolist()) == owners


def test_heads_that_are_no_equal_shares_are_refused_with_the_nearest_sizes() -> None:
    text = r"--tp 3: 4 query and 2 KV heads have no 3 equal shares; use --tp 2 or --tp 4"
    with pytest.raises(OptionError, match=text):
        split(lowered("llama"), 3)


def test_what_stays_whole_is_told() -> None:
    rng, b = np.random.default_rng(0), Builder()
    value = b.input("x", ("batch", 8))
    for layer in range(2):
        shapes = {"up": (8, 12), "down": (12, 8)}
        up, down = (
            b.weight(f"{name}{layer}", rng.standard_normal(shape).astype(np.float32))
            for name, shape in shapes.items()
        )
        hidden = b.op("Relu", b.op("MatMul", value, up))
        if layer:
            hidden = b.op("RMSNormalization", hidden, b.weight("scale", np.ones(12, np.float32)), axis=-1)
        value = b.op("MatMul", hidden, down)
    b.output(value, "y")
    program = b.program()
    whole, result = split(program, 2)
    assert [note.text for note in result.hits] == ["12 channels over 2 ranks"]
    assert [note.text for note in result.declined] == [
        "not split by channels: down0 is split in another way",
        "not split by outputs: 12 are fewer than 16 for each of 2 ranks",
        "not split by outputs: 8 are fewer than 16 for each of 2 ranks",
    ]
    sizes = [dict(p.main.graph.initializers)["up1"].shape for p in rank_programs(whole, 2)]
    assert [list(shape or ()) for shape in sizes] == [[8, 12], [8, 12]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tensor")


@functools.cache
def written(folder: Path, family: str, mesh: Mesh, device: str = "cpu") -> tuple[Path, Plan]:
    place = folder / f"{family}-{mesh}-{device}"
    program = lowered(family, device=device)
    return place, write_plan(program, mesh, OnnxRuntimeBackend(), Target(device), place)


def opened(program: Program, place: Path, entry: str = "main") -> ParallelRunner:
    signature = Entry(program.inputs(entry), program.outputs(entry))
    return ParallelModel(place, signature, entry, program.decoding, dims=program.dims).open(1)


def greedy(program: Program, place: Path, count: int = 12) -> tuple[list[list[int]], Array]:
    """Tokens of both prompts, and the last logits."""
    assert program.decoding is not None
    with opened(program, place, "decode") as runner:
        decoder = Decoder(runner, program.decoding, rows=2)
        for row, prompt in enumerate(PROMPTS):
            decoder.prefill(row, prompt, chunk=4)
        tokens = []
        for _ in range(count):
            tokens.append(decoder.tokens[:, 0].tolist())
            decoder.step()
        return tokens, decoder.logits.copy()


@pytest.mark.parametrize("mesh", [Mesh(tp=2), Mesh(pp=2, tp=2), Mesh(tp=4)], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_text_is_continued_as_by_the_whole(folder: Path, family: str, mesh: Mesh) -> None:
    program = lowered(family)
    wanted, logits = greedy(program, written(folder, family, Mesh())[0])
    place, plan = written(folder, family, mesh)
    tokens, found = greedy(program, place)
    assert tokens == wanted
    assert error(found, logits) < 1e-5
    specs = [state.spec for share in plan.shares for state in share.state["decode"]]
    kept = {"llama": max(1, 2 // mesh.tp), "gpt2": 4 // mesh.tp}[family]
    assert {spec.shape for spec in specs} == {("batch", kept, "capacity", 16)}


@pytest.mark.parametrize("mesh", [Mesh(tp=2), Mesh(pp=2, tp=2)], ids=str)
def test_what_is_lowered_for_a_gpu_is_continued_too(folder: Path, mesh: Mesh) -> None:
    program = lowered("llama", device="cuda")
    wanted, logits = greedy(program, written(folder, "llama", Mesh())[0])
    tokens, found = greedy(program, written(folder, "llama", mesh, "cuda")[0])
    assert tokens == wanted
    assert error(found, logits) < 1e-5


def test_rows_are_run_by_replicas_of_stages_of_shards(folder: Path) -> None:
    program = lowered("llama")
    inputs = {"input_ids": np.random.default_rng(0).integers(0, VOCABULARY, (5, 9))}
    found = []
    for mesh in (Mesh(), Mesh(2, 2, 2)):
        with opened(program, written(folder, "llama", mesh)[0]) as runner:
            found.append(runner.run(inputs)["logits"])
    assert error(found[1], found[0]) < 1e-5
    plan = written(folder, "llama", Mesh(2, 2, 2))[1]
    homes = [{file.partition("/")[0] for file in share.files} for share in plan.shares]
    assert homes == [{f"stage{share.stage}.shard{share.shard}"} for share in plan.shares]


def look_up(rows: int) -> Program:
    b = Builder()
    ids = b.input("ids", ("batch", "tokens"), INT64)
    table = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4)
    b.output(b.op("Gather", b.weight("table", table), ids, axis=0), "y")
    return b.program()


def test_a_vocabulary_is_looked_up_where_its_rows_are(tmp_path: Path) -> None:
    program = look_up(301)
    plan = write_plan(program, Mesh(tp=2), OnnxRuntimeBackend(), Target(), tmp_path / "plan")
    assert all(151 * 16 <= share.memory + 16 < 160 * 16 for share in plan.shares)
    with opened(program, tmp_path / "plan") as runner:
        ids = np.array([[0, 150, 151], [300, -1, -301]])
        assert np.array_equal(runner.run({"ids": ids})["y"][..., 0], ids % 301 * 4)
        for wrong in (301, -302):
            with pytest.raises(CompileError, match="out of data bounds"):
                runner.run({"ids": np.array([[wrong]])})


def test_an_encoder_is_split(tmp_path: Path) -> None:
    inputs = {"x": example("bert")}
    options = CompileOptions(backend="ort")
    program = import_module(build_encoder("bert"), options, inputs, framework="torch").program
    run_pipeline(program, pipeline(options), context_of(options), [])
    found = []
    for mesh in (Mesh(), Mesh(tp=2)):
        place = tmp_path / str(mesh)
        write_plan(program, mesh, OnnxRuntimeBackend(), Target(), place)
        with opened(program, place) as runner:
            found.append(runner.run(inputs))
    assert all(error(found[1][name], array) < 1e-5 for name, array in found[0].items())
