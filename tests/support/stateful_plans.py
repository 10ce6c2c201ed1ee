"""A hand-made partitioned decoder: two stages, any number of shards, each with state of its own heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.ir.builder import FLOAT, INT64, Builder
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import Target
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.plan import (
    Collective,
    EntryPlan,
    Feed,
    Fetch,
    Plan,
    Share,
    State,
    Step,
    Wire,
)
from miaotui.compiler.parallel.writing import build_share, written
from miaotui.compiler.program import Decoding, Program, StateTensor, TensorSpec
from support.plans import VERSION

Array = np.ndarray[Any, Any]

WIDTH, HEADS, HEAD, VOCABULARY = 16, 2, 6, 29

DECODING = Decoding(VOCABULARY, (StateTensor("k0", "k0_out"), StateTensor("k1", "k1_out")), context=2048)

IDS = TensorSpec("input_ids", INT64, ("batch", "tokens"))
LENGTHS = TensorSpec("past_lengths", INT64, ("batch",))
SELECT = TensorSpec("select", INT64, ("batch", "selected"))
LOGITS = TensorSpec("logits", FLOAT, ("batch", "selected", VOCABULARY))
NEXT = TensorSpec("next", INT64, ("batch", "selected"))
HIDDEN = TensorSpec("h", FLOAT, ("batch", "tokens", WIDTH))

SIGNATURE = Entry(
    (IDS, LENGTHS, SELECT, *(TensorSpec(f"k{i}", FLOAT, ("batch", HEADS, "capacity", HEAD)) for i in (0, 1))),
    (LOGITS, NEXT, *(TensorSpec(f"k{i}_out", FLOAT, ("batch", HEADS, "capacity", HEAD)) for i in (0, 1))),
)


def weights(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"embed": (VOCABULARY, WIDTH), "head": (WIDTH, VOCABULARY)}
    shapes |= {f"in{i}": (WIDTH, HEADS * HEAD) for i in (0, 1)}
    shapes |= {f"out{i}": (HEADS * HEAD, WIDTH) for i in (0, 1)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def run_whole(ids: list[int], seed: int = 0) -> Array:
    """float32[tokens, vocabulary]: logits after every token; layers add a mean over all so far."""
    w = weights(seed)
    h = w["embed"][ids]
    for i in (0, 1):
        mean = np.cumsum(h @ w[f"in{i}"], 0) / np.arange(1, len(ids) + 1)[:, None]
        h = h + np.tanh(mean @ w[f"out{i}"])
    logits: Array = h @ w["head"]
    return logits


def write_greedily(prompt: list[int], count: int, seed: int = 0) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(run_whole(ids, seed)[-1].argmax()))
    return ids[len(prompt) :]


def write_stateful_plan(folder: Path, mesh: Mesh | None = None, seed: int = 0) -> Plan:
    """Write plan.json and its parts into ``folder``; ``mesh.pp`` must be 2, ``mesh.tp`` divide 2."""
    mesh = Mesh(pp=2) if mesh is None else mesh
    folder.mkdir(parents=True, exist_ok=True)
    shares = [_share(folder, stage, shard, mesh.tp, seed) for stage in (0, 1) for shard in range(mesh.tp)]
    entry = EntryPlan(
        feeds=(Feed(IDS, (0,), 0), Feed(LENGTHS, (0, 1), 0), Feed(SELECT, (1,), 0)),
        fetches=(Fetch(LOGITS, 1, 0), Fetch(NEXT, 1, 0)),
        wires=(Wire(HIDDEN, 0, (1,), 4 * WIDTH, batch=0),),
    )
    return written(Plan(VERSION, mesh, {"decode": entry}, tuple(shares)), folder)


def _share(folder: Path, stage: int, shard: int, tp: int, seed: int) -> Share:
    w, heads = weights(seed), HEADS // tp
    b = Builder()
    if stage == 0:
        h = b.op("Gather", b.weight("embed", w["embed"]), b.input("input_ids", IDS.shape, INT64), axis=0)
        b.output(b.op("Identity", h), "e")
    else:
        h = b.input("h", HIDDEN.shape)
    lengths = b.input("past_lengths", LENGTHS.shape, INT64)
    state = b.input(f"k{stage}", ("batch", heads, "capacity", HEAD))
    context, present = _attended(b, h, lengths, state, np.split(w[f"in{stage}"], tp, 1)[shard], heads)
    out = b.weight("out", np.split(w[f"out{stage}"], tp, 0)[shard])
    b.output(b.op("MatMul", context, out), f"partial{stage}")
    b.output(present, f"k{stage}_out")
    second = Builder()
    summed = second.input(f"sum{stage}", HIDDEN.shape)
    before = second.input("e" if stage == 0 else "h", HIDDEN.shape)
    after = second.op("Add", before, second.op("Tanh", summed))
    if stage == 0:
        second.output(after, "h")
    else:
        select = second.input("select", SELECT.shape, INT64)
        index = second.op("Unsqueeze", select, _ints(second, "last", [2]))
        wide = second.op("Expand", index, _ints(second, "wide", [1, 1, WIDTH]))
        chosen = second.op("GatherElements", after, wide, axis=1)
        logits = second.op("MatMul", chosen, second.weight("head", w["head"]))
        second.output(logits, "logits")
        second.output(second.op("ArgMax", logits, axis=-1, keepdims=0), "next")
    entries = {"decode": b.program().main, "decode_1": second.program().main}
    program = Program(entries)
    given = {"decode": (f"k{stage}_out", f"partial{stage}", "e"), "decode_1": ("h", "logits", "next")}
    known = {s.name: s for s in (HIDDEN, LOGITS, NEXT)}
    built = build_share(program, OnnxRuntimeBackend(), Target(), folder, stage, shard)
    parts = []
    for name, part in built.parts.items():
        made = {spec.name: spec for spec in part.signature.outputs}
        outputs = tuple(_known(spec, known, heads) for n, spec in made.items() if n in given[name])
        parts.append(replace(part, signature=Entry(part.signature.inputs, outputs)))
    partial = TensorSpec(f"partial{stage}", FLOAT, HIDDEN.shape)
    reduce = Collective(f"reduce{stage}", "AllReduce", "tp", f"partial{stage}", f"sum{stage}", partial)
    steps: tuple[Step, ...] = (parts[0], reduce, parts[1])
    kept = State(
        f"k{stage}", f"k{stage}_out", TensorSpec(f"k{stage}", FLOAT, ("batch", heads, "capacity", HEAD))
    )
    return Share(stage, shard, {"decode": steps}, {"decode": (kept,)}, built.weights, built.memory)


def _known(spec: TensorSpec, known: dict[str, TensorSpec], heads: int) -> TensorSpec:
    """With the shape that the whole program has it in."""
    if spec.name.startswith("k"):
        return replace(spec, shape=("batch", heads, "capacity", HEAD))
    return replace(spec, shape=known.get(spec.name, HIDDEN).shape)


def _attended(
    b: Builder, h: ir.Value, lengths: ir.Value, state: ir.Value, into: Array, heads: int
) -> tuple[ir.Value, ir.Value]:
    """[batch, tokens, heads * width], means over what ``state`` holds then; and the state written."""
    zero, one = _ints(b, "zero", 0), _ints(b, "one", 1)
    values = b.op("MatMul", h, b.weight("in", into))
    values = b.op(
        "Transpose", b.op("Reshape", values, _ints(b, "split", [0, 0, heads, HEAD])), perm=[0, 2, 1, 3]
    )
    tokens = b.op("Squeeze", b.op("Shape", h, start=1, end=2))
    capacity = b.op("Squeeze", b.op("Shape", state, start=2, end=3))
    offsets = b.op("Range", zero, tokens, one)
    positions = b.op("Add", b.op("Unsqueeze", lengths, _ints(b, "second", [1])), offsets)
    column = b.op("Unsqueeze", positions, _ints(b, "third", [2]))
    places = b.op("Range", zero, capacity, one)
    hit = b.op("Cast", b.op("Equal", column, places), to=FLOAT)
    spread = b.op("Unsqueeze", b.op("Transpose", hit, perm=[0, 2, 1]), _ints(b, "head", [1]))
    written = b.op("MatMul", spread, values)
    taken = b.op("ReduceMax", spread, _ints(b, "tokens", [3]), keepdims=1)
    kept = b.op("Sub", b.weight("unit", np.float32(1)), taken)
    present = b.op("Add", b.op("Mul", state, kept), written)
    seen = b.op("Cast", b.op("LessOrEqual", places, column), to=FLOAT)
    count = b.op("Cast", b.op("Add", column, one), to=FLOAT)
    mean = b.op("Unsqueeze", b.op("Div", seen, count), _ints(b, "among", [1]))
    context = b.op("Transpose", b.op("MatMul", mean, present), perm=[0, 2, 1, 3])
    return b.op("Reshape", context, _ints(b, "join", [0, 0, heads * HEAD])), present


def _ints(b: Builder, name: str, values: Any) -> ir.Value:
    return b.weight(name, np.asarray(values, np.int64))
