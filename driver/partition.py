"""A partitioned executable: the lowered program cut into stages and shares, wired by plan.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from ..compiler.codegen.base import Backend
from ..compiler.errors import InternalError, UnsupportedError
from ..compiler.ir.check_sharding import sharding_problems
from ..compiler.ir.cut import Segment, cut
from ..compiler.ir.shapes import infer_shapes
from ..compiler.options import Target
from ..compiler.parallel.estimates import estimated
from ..compiler.parallel.mesh import Mesh
from ..compiler.parallel.plan import (
    OUTSIDE,
    Collective,
    EntryPlan,
    Feed,
    Fetch,
    Plan,
    Share,
    State,
    Wire,
)
from ..compiler.parallel.sharding import sharding, stage
from ..compiler.parallel.steps import rank_steps
from ..compiler.parallel.writing import build_share, write_annotated, written
from ..compiler.program import Decoding, Program, TensorSpec
from ..passes.base import PassContext
from ..passes.partition.data import batch_problems, batch_symbol
from ..passes.partition.pipeline import PipelineStages
from ..passes.partition.ranks import rank_programs
from ..passes.partition.tensor import TensorParallel
from ..runtime.parallel.version import own_version
from .meshes import refuse_memory, refuse_mesh

Stages: TypeAlias = dict[int, Segment[int]]


def write_plan(
    program: Program,
    mesh: Mesh,
    backend: Backend,
    target: Target,
    folder: Path,
    memory: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Write the lowered ``program`` into ``folder`` as the parts of ``mesh``, and plan.json.

    ``memory``: bytes of weights that a rank may have, None for any. ``note`` is told what shards don't share.
    Raises: OptionError for a mesh that the program can't be put on, UnsupportedError if shards could share
    none of its layers.
    """
    refuse_mesh(program, mesh, memory)
    program = program.clone()
    infer_shapes(program)
    for left in TensorParallel(size=mesh.tp).run(program, PassContext(target)).declined:
        note(f"tensor parallel: {left}")
    PipelineStages(stages=mesh.pp, memory=float(memory or 0) * mesh.tp).run(program, PassContext(target))
    return write_staged(program, mesh, backend, target, folder, memory)


def write_staged(
    program: Program, mesh: Mesh, backend: Backend, target: Target, folder: Path, memory: int | None = None
) -> Plan:
    """``write_plan`` of a program whose nodes are annotated with the stages of ``mesh``.

    Raises: UnsupportedError if its stages can't be run one after the other; as ``write_plan``.
    """
    _check(program, mesh)
    batch = batch_or_none(program)
    found = [
        {entry: _segments(rank, entry) for entry in rank.entries} for rank in rank_programs(program, mesh.tp)
    ]
    shares = tuple(
        _share(number, shard, found[shard], program, backend, target, folder)
        for number in range(mesh.pp)
        for shard in range(mesh.tp)
    )
    entries = {entry: _wiring(program, entry, stages, batch) for entry, stages in found[0].items()}
    plan = estimated(program, Plan(own_version(), mesh, entries, shares))
    refuse_memory(plan, memory)
    write_annotated(program, mesh, folder)
    return written(plan, folder)


def _check(program: Program, mesh: Mesh) -> None:
    """Raise InternalError if annotations contradict themselves."""
    for entry, model in program.entries.items():
        if found := sharding_problems(model, mesh):
            raise InternalError(f"entry {entry!r} is annotated wrongly: {'; '.join(map(str, found[:5]))}")


def batch_or_none(program: Program) -> str | None:
    """The dimension whose rows replicas and micro-batches share; None if they can't be told apart."""
    return batch_symbol(program) if program.decoding is not None or not batch_problems(program) else None


def _segments(program: Program, entry: str) -> Stages:
    """What each stage runs of an entry; nothing where it only computes what nobody reads."""
    segments = cut(program, lambda node: stage(node) or 0, entry)
    if len({segment.owner for segment in segments}) < len(segments):
        fact = "its stages can't be run one after the other"
        raise UnsupportedError(f"entry {entry!r}", fact, "use fewer stages")
    return {segment.owner: segment for segment in segments if segment.program.outputs()}


def _share(
    number: int,
    shard: int,
    found: Mapping[str, Stages],
    program: Program,
    backend: Backend,
    target: Target,
    folder: Path,
) -> Share:
    decoding = program.decoding
    models: dict[str, ir.Model] = {}
    order: dict[str, list[str | Collective]] = {}
    for entry, stages in found.items():
        if number not in stages:
            continue
        order[entry] = []
        kept = {s.input: s.output for s in decoding.state} if decoding and decoding.entry == entry else {}
        for step in rank_steps(stages[number].program, state=kept):
            if isinstance(step, Collective):
                order[entry].append(step)
                continue
            name = f"{entry}_{len(order[entry])}" if entry in models else entry
            models[name] = step
            order[entry].append(name)
    mine = replace(program, entries=models)
    state: dict[str, tuple[State, ...]] = {}
    if decoding is not None and decoding.entry in order:
        parts = [step for step in order[decoding.entry] if isinstance(step, str)]
        state[decoding.entry] = _states(mine, parts, decoding)
    built = build_share(
        mine, backend, target, folder, number, shard, () if decoding is None else decoding.state
    )
    steps = {
        entry: tuple(built.parts[step] if isinstance(step, str) else step for step in own)
        for entry, own in order.items()
    }
    return Share(number, shard, steps, state, built.weights, built.memory)


def _states(mine: Program, parts: Sequence[str], decoding: Decoding) -> tuple[State, ...]:
    specs = {spec.name: spec for part in parts for spec in mine.inputs(part)}
    return tuple(
        State(kept.input, kept.output, specs[kept.input]) for kept in decoding.state if kept.input in specs
    )


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
    whole = {value.name: value for node in program.entries[entry].graph for value in node.outputs}
    wires = []
    for number, segment in sorted(stages.items()):
        for spec in segment.program.outputs():
            targets = tuple(n for n in sorted(read) if n > number and spec.name in read[n])
            if targets:
                splits = sharding(whole[spec.name]).splits
                wires.append(
                    Wire(spec, number, targets, sharded=next(iter(splits), None), batch=_axis(spec, batch))
                )
    return EntryPlan(tuple(feeds), tuple(fetches), tuple(wires))


def _state(decoding: Decoding | None, entry: str) -> tuple[set[str], set[str]]:
    if decoding is None or decoding.entry != entry:
        return set(), set()
    return {kept.input for kept in decoding.state}, {kept.output for kept in decoding.state}


def _axis(spec: TensorSpec, batch: str | None) -> int | None:
    dims = spec.shape or ()
    return dims.index(batch) if batch is not None and batch in dims else None
