"""One rank's program in steps: models that run one after the other, collectives between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

import onnx_ir as ir

from ..dialect import MIAOTUI
from ..dialect.collective import COLLECTIVES
from ..ir.cut import cut, reads
from ..program import Program, TensorSpec
from .mesh import MeshAxis
from .plan import Collective, CollectiveOp

RankStep: TypeAlias = "ir.Model | Collective"


def rank_steps(
    program: Program, entry: str = "main", state: Mapping[str, str] | None = None
) -> Sequence[RankStep]:
    """An entry of one rank's ``program`` as models, as few as its collectives allow, and these.

    What does not wait for a collective runs before it, but what reads of ``state`` (input → output) runs with
    who writes it. Values keep their names.
    """
    levels = _levels(program.entries[entry].graph, {})
    if state:
        levels = _levels(program.entries[entry].graph, _together(program.entries[entry].graph, state, levels))

    def owner(node: ir.Node) -> tuple[int, str]:
        return levels[node], str(node.name) if is_collective(node) else ""

    steps: list[RankStep] = []
    for segment in cut(program, owner, entry):
        model = segment.program.main
        first = next(iter(model.graph))
        steps.append(_collective(first) if is_collective(first) else model)
    return steps


def _levels(graph: ir.Graph, least: Mapping[ir.Node, int]) -> dict[ir.Node, int]:
    """Behind how many collectives each node runs; ``least``: of some, at least so many."""
    levels: dict[ir.Node, int] = {}
    for node in graph:
        makers = [maker for v in reads(node) if (maker := v.producer()) in levels and maker is not None]
        behind = max((levels[maker] + is_collective(maker) for maker in makers), default=0)
        levels[node] = max(behind, least.get(node, 0))
    return levels


def _together(graph: ir.Graph, state: Mapping[str, str], levels: Mapping[ir.Node, int]) -> dict[ir.Node, int]:
    """For every reader of a state tensor the level of who writes it."""
    writers = {str(value.name): value.producer() for value in graph.outputs}
    return {
        use.node: levels[writer]
        for value in graph.inputs
        if (writer := writers.get(state.get(str(value.name), ""))) is not None
        for use in value.uses()
        if use.node in levels
    }


def is_collective(node: ir.Node) -> bool:
    """Whether ranks of a group meet in ``node``."""
    return node.domain == MIAOTUI and node.op_type in COLLECTIVES


def _collective(node: ir.Node) -> Collective:
    (given,) = node.inputs
    assert given is not None
    spec = TensorSpec.of(given)
    sizes = () if node.op_type == "AllReduce" else tuple(node.attributes.get_ints("sizes", ()))
    return Collective(
        str(node.name),
        cast("CollectiveOp", node.op_type),
        cast("MeshAxis", node.attributes.get_string("over", "tp")),
        spec.name,
        str(node.outputs[0].name),
        spec,
        node.attributes.get_int("axis", 0) if sizes else 0,
        sizes,
    )
