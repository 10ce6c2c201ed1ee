"""Partitioned programs for timing: stages that do next to nothing, and a perceptron that keeps cores busy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.ir.builder import FLOAT, Builder
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
    Step,
    Wire,
)
from miaotui.compiler.parallel.writing import build_share, written
from miaotui.compiler.program import TensorSpec
from miaotui.runtime.parallel.version import own_version

WIDTH, HIDDEN, LAYERS = 512, 2048, 4

Body = Callable[[Builder, ir.Value, int], ir.Value]
"""What stage number n computes of a value."""


def spec(name: str, width: int) -> TensorSpec:
    return TensorSpec(name, FLOAT, ("batch", width))


def signature(width: int, stages: int) -> Entry:
    return Entry((spec("v0", width),), (spec(f"v{stages}", width),))


def passed_on(b: Builder, x: ir.Value, stage: int) -> ir.Value:
    """The value itself, by a part."""
    return b.op("Identity", x)


def perceptron(stages: int) -> Body:
    """Its share of LAYERS layers; all stages together are the same for any count of them."""

    def body(b: Builder, x: ir.Value, stage: int) -> ir.Value:
        for layer in range(stage * LAYERS // stages, (stage + 1) * LAYERS // stages):
            rng = np.random.default_rng(layer)
            up = b.weight(f"up{layer}", rng.standard_normal((WIDTH, HIDDEN)) / 23)
            down = b.weight(f"down{layer}", rng.standard_normal((HIDDEN, WIDTH)) / 45)
            x = b.op("Add", x, b.op("MatMul", b.op("Relu", b.op("MatMul", x, up)), down))
        return x

    return body


def write(folder: Path, mesh: Mesh, width: int, body: Body | None, reduced: int = 0) -> Path:
    """plan.json with a stage for each of ``body``; ``reduced``: AllReduces of the value behind the first.

    Without a ``body`` stages compute nothing: each hands on what its only shard sums up alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shares = []
    for stage in range(mesh.pp):
        for shard in range(mesh.tp):
            if body is None:
                alone = Collective(
                    "alone", "AllReduce", "tp", f"v{stage}", f"v{stage + 1}", spec(f"v{stage}", width)
                )
                shares.append(Share(stage, shard, {"main": (alone,)}))
                continue
            b = Builder()
            b.output(body(b, b.input(f"v{stage}", ("batch", width)), stage), f"v{stage + 1}")
            built = build_share(b.program(), OnnxRuntimeBackend(), Target(), folder, stage, shard)
            given = replace(built.parts["main"].signature, outputs=(spec(f"v{stage + 1}", width),))
            steps: list[Step] = [replace(built.parts["main"], signature=given)]
            if stage == 0:
                steps += [_reduce(number, width) for number in range(reduced)]
            shares.append(Share(stage, shard, {"main": tuple(steps)}, weights=built.weights))
    entry = EntryPlan(
        feeds=(Feed(spec("v0", width), (0,), 0),),
        fetches=(Fetch(spec(f"v{mesh.pp}", width), mesh.pp - 1, 0),),
        wires=tuple(
            Wire(spec(f"v{stage}", width), stage - 1, (stage,), 4 * width, batch=0)
            for stage in range(1, mesh.pp)
        ),
    )
    written(Plan(own_version(), mesh, {"main": entry}, tuple(shares)), folder)
    return folder


def rows(count: int, width: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"v0": np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)}


def _reduce(number: int, width: int) -> Collective:
    return Collective(f"reduce{number}", "AllReduce", "tp", "v1", f"sum{number}", spec("v1", width))
