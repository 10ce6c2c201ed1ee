"""What a run of a plan costs by the cost model: seconds of each stage, bytes of each transfer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from ..cost import Device, cpu, program_cost
from ..cost.stages import Link
from ..ir.sizes import concrete_shape, resolve_sizes
from ..program import Program, TensorSpec
from .plan import Collective, EntryPlan, Estimate, Plan, Share, StageCost, Step
from .sharding import stage


def estimated(program: Program, plan: Plan, device: Device | None = None, link: Link | None = None) -> Plan:
    """``plan`` with the bytes that wires and collectives move and an estimate of every entry.

    ``program``: annotated with the plan's stages. Sizes are usual ones: batch 2, 16 tokens. ``device``: of
    every rank, a core by default.
    """
    device = cpu() if device is None else device
    link = Link() if link is None else link
    sizes = {entry: resolve_sizes(program, entry) for entry in plan.entries}
    entries = {entry: _moved(wiring, sizes[entry]) for entry, wiring in plan.entries.items()}
    shares = tuple(
        replace(
            share,
            steps={
                entry: tuple(_met(step, sizes[entry]) for step in steps)
                for entry, steps in share.steps.items()
            },
        )
        for share in plan.shares
    )
    plan = replace(plan, entries=entries, shares=shares)
    found = (_estimate(program, plan, entry, sizes[entry], device, link) for entry in plan.entries)
    return replace(plan, estimates=tuple(found))


def _estimate(
    program: Program, plan: Plan, entry: str, sizes: Mapping[str, int], device: Device, link: Link
) -> Estimate:
    given = {name: size for name, size in sizes.items() if name.isidentifier()}
    stages = {str(node.name): stage(node) or 0 for node in program.entries[entry].graph}
    seconds, nodes = [0.0] * plan.mesh.pp, [0] * plan.mesh.pp
    for row in program_cost(program, given, entry).rows:
        if row.node in stages:  # what subgraphs run is counted with the nodes that have them
            seconds[stages[row.node]] += row.seconds(device) / plan.mesh.tp
    for number in stages.values():
        nodes[number] += 1
    costs = []
    for number in range(plan.mesh.pp):
        received = [wire.bytes for wire in plan.entries[entry].wires if number in wire.targets]
        costs.append(
            StageCost(
                seconds=seconds[number],
                collectives=_meeting(plan.share(number, 0), entry, plan.mesh.tp, link),
                receiving=link.latency + sum(received) / link.bandwidth if received else 0.0,
                memory=max(plan.share(number, shard).memory for shard in range(plan.mesh.tp)),
                nodes=nodes[number],
            )
        )
    times = [cost.seconds + cost.collectives for cost in costs]
    slowest = max(times)
    balance = sum(times) / len(times) / slowest if slowest else 1.0
    return Estimate(entry, device.name, given, tuple(costs), round(balance, 4))


def _meeting(share: Share, entry: str, ranks: int, link: Link) -> float:
    met = [step for step in share.steps.get(entry, ()) if isinstance(step, Collective)]
    rounds = {"AllReduce": 2, "AllGather": 1, "ReduceScatter": 1}
    return sum(
        rounds[step.op] * (ranks - 1) * (link.latency + step.bytes / ranks / link.bandwidth) for step in met
    )


def _moved(wiring: EntryPlan, sizes: Mapping[str, int]) -> EntryPlan:
    wires = tuple(replace(wire, bytes=_bytes(wire.spec, sizes)) for wire in wiring.wires)
    return replace(wiring, wires=wires)


def _met(step: Step, sizes: Mapping[str, int]) -> Step:
    return replace(step, bytes=_bytes(step.spec, sizes)) if isinstance(step, Collective) else step


def _bytes(spec: TensorSpec, sizes: Mapping[str, int]) -> int:
    known = dict(sizes)
    for dim in spec.shape or ():
        if isinstance(dim, str) and dim not in known:
            known |= _evaluated(dim, sizes)
    return math.ceil(math.prod(concrete_shape(spec, known)) * spec.dtype.bitwidth / 8)


def _evaluated(dim: str, sizes: Mapping[str, int]) -> dict[str, int]:
    try:
        size = ir.SymbolicDim(dim).evaluate(sizes)
    except ValueError:  # a name that is no expression
        return {}
    return {dim: size} if isinstance(size, int) else {}
