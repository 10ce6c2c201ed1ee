"""Programs cut for a mesh and run by threads, bit for bit what they are in one piece."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.artifact import WEIGHTS
from miaotui.compiler.codegen.base import Backend, Build
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.manifest import Entry
from miaotui.compiler.options import Target
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.plan import EntryPlan
from miaotui.compiler.program import Program
from miaotui.compiler.weights import WeightStore
from miaotui.driver.meshes import most_stages
from miaotui.driver.partition import write_plan
from miaotui.passes.partition.data import batch_problems
from miaotui.passes.partition.pipeline import chain_of
from miaotui.runtime.executable import Executable
from miaotui.runtime.generate.decoder import Decoder
from miaotui.runtime.parallel.options import ParallelOptions
from miaotui.runtime.parallel.runner import ParallelModel, ParallelRunner
from miaotui.runtime.parallel.splitting import cut, joined, spans

from .numerics import scaled_error

Arrays = dict[str, np.ndarray[Any, Any]]

WHOLE_SUITE = bool(os.environ.get("MIAOTUI_WHOLE_SUITE"))
"""Whether all cuts are run; a sample otherwise."""


class Plain(OnnxRuntimeBackend):
    """ONNX Runtime as the program is written: what it fuses across a cut would round differently."""

    def build(self, program: Program, target: Target, folder: Path, weights: WeightStore) -> Build:
        built = super().build(program, target, folder, weights)
        return replace(built, settings={"graph_optimization_level": "none"})


@dataclass(frozen=True)
class Cut:
    """A program written for a mesh into ``folder``."""

    program: Program
    folder: Path
    wiring: EntryPlan

    @classmethod
    def write(cls, program: Program, mesh: Mesh, folder: Path, backend: Backend | None = None) -> Cut:
        plan = write_plan(program, mesh, backend or Plain(), Target(), folder)
        return cls(program, folder, plan.entries["main"])

    def open(self, entry: str = "main", micro_batches: int = 1) -> ParallelRunner:
        program = self.program
        return ParallelModel(
            folder=self.folder,
            signature=Entry(program.inputs(entry), program.outputs(entry)),
            entry=entry,
            decoding=program.decoding,
            options=ParallelOptions(micro_batches=micro_batches),
        ).open(1)

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        with self.open() as runner:
            return dict(runner.run(inputs))

    def run_rows(self, inputs: Arrays, parts: int) -> Arrays:
        """Run part by part of the rows, joined."""
        rows = next(inputs[f.spec.name].shape[f.batch] for f in self.wiring.feeds if f.batch is not None)
        with self.open() as runner:
            pieces = [
                runner.run(cut(self.wiring, inputs, *span))
                for span in spans(rows, parts)
                if span[1] > span[0]
            ]
        return joined(self.wiring, inputs, pieces)


def equals_the_whole_in_every_cut(program: Program, inputs: Arrays, folder: Path, number: int) -> float:
    """Assert that stages and replicas give the bits of the whole; the greatest error of whole batches.

    Replicas compute fewer rows at once, for which libraries of kernels may sum in another order: they are
    held against the whole given as many rows. ``number``: which cuts are in the sample.
    """
    stages = range(1, 9) if WHOLE_SUITE else [2 + number % 7]
    replicas = range(1, 5) if WHOLE_SUITE else [2 + number % 3]
    most = most_stages(chain_of(program, "main"))
    whole = Cut.write(program, Mesh(), folder / "whole")
    wanted = whole.run(inputs)
    for pp in stages:
        assert pp <= most
        same(Cut.write(program, Mesh(pp=pp), folder / f"pp{pp}").run(inputs), wanted)
    error = 0.0
    for dp in () if batch_problems(program) else replicas:
        found = Cut.write(program, Mesh(dp=dp, pp=2), folder / f"dp{dp}").run(inputs)
        same(found, whole.run_rows(inputs, dp))
        error = max(error, *(scaled_error(found[name], array) for name, array in wanted.items()))
    assert error < 1e-5
    return error


def lowered_program(executable: Executable) -> Program:
    """What an executable for ONNX Runtime was written from; tensors that lie at one place are one."""
    manifest, record = executable.manifest, executable.manifest.variants[executable.manifest.default]
    tensors: dict[int | None, Any] = {}
    entries = {}
    for entry, file in record.entries.items():
        model = ir.load(executable.folder / file)
        for graph in model.graphs():
            ir.external_data.set_base_dir(graph, executable.folder / Path(WEIGHTS).parent)
            for value in graph.initializers.values():
                if isinstance(tensor := value.const_value, ir.ExternalTensor):
                    value.const_value = tensors.setdefault(tensor.offset, tensor)
        entries[entry] = model
    return Program(entries, dims=dict(manifest.dims), decoding=manifest.decoding)


def greedy(cut: Cut, prompt: Sequence[int], count: int) -> list[int]:
    """Continuation of ``prompt`` with state in the ranks."""
    decoding = cut.program.decoding
    assert decoding is not None
    with cut.open(decoding.entry) as runner:
        decoder = Decoder(runner, decoding, rows=1)
        decoder.prefill(0, list(prompt))
        written = [int(decoder.tokens[0, 0])]
        while len(written) < count:
            decoder.step()
            written.append(int(decoder.tokens[0, 0]))
        return written


def same(found: Mapping[str, np.ndarray[Any, Any]], wanted: Mapping[str, np.ndarray[Any, Any]]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), f"{name}: {scaled_error(found[name], array):.2e}"
