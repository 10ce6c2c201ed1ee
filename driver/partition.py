"""A partitioned executable: the lowered program cut into stages, one folder each, wired by plan.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..compiler.codegen.base import Backend
from ..compiler.errors import OptionError, UnsupportedError
from ..compiler.ir.cut import Segment, cut
from ..compiler.ir.shapes import infer_shapes
from ..compiler.options import Target
from ..compiler.parallel.mesh import Mesh
from ..compiler.parallel.plan import OUTSIDE, EntryPlan, Feed, Fetch, Plan, Share, State, Wire
from ..compiler.parallel.sharding import stage
from ..compiler.parallel.writing import build_share, written
from ..compiler.program import Decoding, Program, TensorSpec
from ..passes.base import PassContext
from ..passes.partition.pipeline import PipelineStages
from ..runtime.parallel.version import own_version

Stages = dict[int, Segment[int]]


def write_plan(program: Program, mesh: Mesh, backend: Backend, target: Target, folder: Path) -> Plan:
    """Write the lowered ``program`` into ``folder`` as the parts of ``mesh``, and plan.json.

    Raises: OptionError for a mesh that the program can't be put on, UnsupportedError for tensor shards.
    """
    if mesh.tp > 1:
        fact = f"--tp {mesh.tp}: no pass splits layers over tensor shards yet"
        raise UnsupportedError("tensor parallel", fact, f"use --pp {mesh.pp * mesh.tp} or --dp instead")
    program = program.clone()
    infer_shapes(program)
    PipelineStages(stages=mesh.pp).run(program, PassContext(target))
    batch = batch_symbol(program) if mesh.dp > 1 else batch_or_none(program)
    found = {entry: _segments(program, entry) for entry in program.entries}
    parts = [{entry: stages.get(number) for entry, stages in found.items()} for number in range(mesh.pp)]
    shares = tuple(_share(number, own, program, backend, target, folder) for number, own in enumerate(parts))
    entries = {entry: _wiring(program, entry, stages, batch) for entry, stages in found.items()}
    return written(Plan(own_version(), mesh, entries, shares), folder)


def batch_or_none(program: Program) -> str | None:
    """The named first dimension that all inputs of ``main`` share; None if there is none."""
    firsts = {spec.shape[0] if spec.shape else None for spec in program.inputs()}
    (first, *others) = firsts or {None}
    return first if isinstance(first, str) and not others else None


def batch_symbol(program: Program) -> str:
    """The same. Raises: OptionError if there is none, or an output of ``main`` lacks it."""
    symbol = batch_or_none(program)
    lacking = [s.name for s in program.outputs() if symbol is None or symbol not in (s.shape or ())]
    if symbol is None or lacking:
        fact = "inputs have no batch dimension of any size that all share"
        if symbol is not None:
            fact = f"outputs {', '.join(lacking)} have no dimension {symbol!r} to join replicas' along"
        raise OptionError("--dp", fact, "use --dp 1, or export the model with a dynamic batch")
    return symbol


def _segments(program: Program, entry: str) -> Stages:
    segments = cut(program, lambda node: stage(node) or 0, entry)
    stages = {segment.owner: segment for segment in segments}
    if len(stages) < len(segments):
        fact = "its stages can't be run one after the other"
        raise UnsupportedError(f"entry {entry!r}", fact, "use fewer stages")
    return stages


def _share(
    number: int,
    segments: Mapping[str, Segment[int] | None],
    program: Program,
    backend: Backend,
    target: Target,
    folder: Path,
) -> Share:
    own = {entry: segment.program.main for entry, segment in segments.items() if segment is not None}
    mine = replace(program, entries=own, decoding=None)
    built = build_share(mine, backend, target, folder, number)
    state = {}
    decoding = program.decoding
    if decoding is not None and decoding.entry in own:
        specs = {spec.name: spec for spec in mine.inputs(decoding.entry)}
        state[decoding.entry] = tuple(
            State(kept.input, kept.output, specs[kept.input])
            for kept in decoding.state
            if kept.input in specs
        )
    steps = {entry: (part,) for entry, part in built.parts.items()}
    return Share(number, 0, steps, state, built.weights, built.memory)


def _wiring(program: Program, entry: str, stages: Stages, batch: str | None) -> EntryPlan:
    decoding = program.decoding
    kept_in, kept_out = _state(decoding, entry)
    read = {number: {spec.name for spec in segment.program.inputs()} for number, segment in stages.items()}
    made = {spec.name: number for number, s in stages.items() for spec in s.program.outputs()}
    feeds = [
        Feed(spec, tuple(n for n in sorted(read) if spec.name in read[n]), _axis(spec, batch))
        for spec in program.inputs(entry)
        if spec.name not in kept_in
    ]
    fetches = [
        Fetch(spec, made.get(spec.name, OUTSIDE), _axis(spec, batch))
        for spec in program.outputs(entry)
        if spec.name not in kept_out
    ]
    wires = []
    for number, segment in sorted(stages.items()):
        for spec in segment.program.outputs():
            targets = tuple(n for n in sorted(read) if n > number and spec.name in read[n])
            if targets:
                wires.append(Wire(spec, number, targets, batch=_axis(spec, batch)))
    return EntryPlan(tuple(feeds), tuple(fetches), tuple(wires))


def _state(decoding: Decoding | None, entry: str) -> tuple[set[str], set[str]]:
    if decoding is None or decoding.entry != entry:
        return set(), set()
    return {kept.input for kept in decoding.state}, {kept.output for kept in decoding.state}


def _axis(spec: TensorSpec, batch: str | None) -> int | None:
    dims = spec.shape or ()
    return dims.index(batch) if batch is not None and batch in dims else None
