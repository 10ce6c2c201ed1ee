"""A hand-made partitioned folder: two stages, any number of shards and replicas, all kinds of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.ir.builder import FLOAT, Builder
from miaotui.compiler.options import Target
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.plan import (
    Collective,
    EntryPlan,
    Feed,
    Fetch,
    Plan,
    Share,
    Step,
    Wire,
)
from miaotui.compiler.parallel.writing import build_share, written
from miaotui.compiler.program import Program, TensorSpec
from miaotui.runtime.parallel.version import own_version

Array = np.ndarray[Any, Any]

WIDTH, HIDDEN, CLASSES = 32, 48, 24
VERSION = own_version()


def weights(seed: int = 0) -> dict[str, Array]:
    """Of the whole network: two layers with a residual, then a projection to classes."""
    rng = np.random.default_rng(seed)
    shapes = {
        "up0": (WIDTH, HIDDEN), "down0": (HIDDEN, WIDTH), "up1": (WIDTH, HIDDEN), "down1": (HIDDEN, WIDTH),
        "head": (WIDTH, CLASSES),
    }  # fmt: skip
    return {name: rng.standard_normal(s).astype(np.float32) / 6 for name, s in shapes.items()}


def run_whole(x: Array, seed: int = 0) -> dict[str, Array]:
    """What the folder computes, in numpy. x: float32[batch, 32]; y: float32[batch, 24]; h: [batch, 32]."""
    w = weights(seed)
    h = x + np.maximum(x @ w["up0"], 0) @ w["down0"]
    g = h + np.maximum(h @ w["up1"], 0) @ w["down1"]
    return {"h": h, "y": (g + x) @ w["head"]}


def write_plan(folder: Path, mesh: Mesh | None = None, seed: int = 0) -> Plan:
    """Write plan.json and its parts into ``folder``; ``mesh.pp`` must be 2, ``mesh.tp`` divide 24.

    Stage 0: x → part, AllReduce, part → h. Stage 1: h and x → part, AllReduce, part, AllGather → y.
    """
    mesh = Mesh(pp=2) if mesh is None else mesh
    folder.mkdir(parents=True, exist_ok=True)
    w = weights(seed)
    shares = [_share(folder, stage, shard, mesh.tp, w) for stage in range(2) for shard in range(mesh.tp)]
    x, h, y = spec("x", WIDTH), spec("h", WIDTH), spec("y", CLASSES)
    entry = EntryPlan(
        feeds=(Feed(x, (0, 1), 0),),
        fetches=(Fetch(h, 0, 0), Fetch(y, 1, 0)),
        wires=(Wire(h, 0, (1,), 4 * WIDTH, batch=0),),
    )
    return written(Plan(VERSION, mesh, {"main": entry}, tuple(shares)), folder)


def spec(name: str, width: int) -> TensorSpec:
    return TensorSpec(name, FLOAT, ("batch", width))


def _share(folder: Path, stage: int, shard: int, tp: int, whole: dict[str, Array]) -> Share:
    up = np.split(whole[f"up{stage}"], tp, 1)[shard]
    down = np.split(whole[f"down{stage}"], tp, 0)[shard]
    source, result = ("x", "h") if stage == 0 else ("h", "g")
    b = Builder()
    hidden = b.op("Relu", b.op("MatMul", b.input(source, ("batch", WIDTH)), b.weight("up", up)))
    b.output(b.op("MatMul", hidden, b.weight("down", down)), f"partial{stage}")
    second = Builder()
    summed = second.input(f"sum{stage}", ("batch", WIDTH))
    added = second.op("Add", second.input(source, ("batch", WIDTH)), summed)
    if stage == 0:
        second.output(added, result)
    else:
        head = np.split(whole["head"], tp, 1)[shard]
        ready = second.op("Add", added, second.input("x", ("batch", WIDTH)))
        second.output(second.op("MatMul", ready, second.weight("head", head)), "scores")
    entries = {"main": b.program(), "main_1": second.program()}
    program = Program({name: made.main for name, made in entries.items()})
    built = build_share(program, OnnxRuntimeBackend(), Target(), folder, stage, shard)
    reduce = Collective(
        f"reduce{stage}", "AllReduce", "tp", f"partial{stage}", f"sum{stage}", spec(f"partial{stage}", WIDTH)
    )
    steps: list[Step] = [built.parts["main"], reduce, built.parts["main_1"]]
    if stage == 1:
        sizes = (CLASSES // tp,) * tp
        steps.append(
            Collective("gather", "AllGather", "tp", "scores", "y", spec("scores", CLASSES // tp), 1, sizes)
        )
    return Share(stage, shard, {"main": tuple(steps)}, weights=built.weights, memory=built.memory)
