"""One rank's program in steps: models that run one after the other, collectives between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import onnx_ir as ir

from ..dialect import MIAOTUI
from ..dialect.collective import COLLECTIVES
from ..ir.cut import cut, reads
from ..program import Program, TensorSpec
from .mesh import MeshAxis
from .plan import Collective, CollectiveOp

RankStep: TypeAlias = "ir.Model | Collective"


def rank_steps(program: Program, entry: str = "main") -> Sequence[RankStep]:
    """An entry of one rank's ``program`` as models, as few as its collectives allow, and these.

    What does not wait for a collective runs before it. Values keep their names.
    """
    levels: dict[ir.Node, int] = {}

    def owner(node: ir.Node) -> tuple[int, str]:
        makers = [maker for v in reads(node) if (maker := v.producer()) in levels and maker is not None]
        levels[node] = max((levels[maker] + is_collective(maker) for maker in makers), default=0)
        return levels[node], str(node.name) if is_collective(node) else ""

    steps: list[RankStep] = []
    for segment in cut(program, owner, entry):
        model = segment.program.main
        first = next(iter(model.graph))
        steps.append(_collective(first) if is_collective(first) else model)
    return steps


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
