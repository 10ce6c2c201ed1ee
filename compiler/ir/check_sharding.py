"""The verifier's part for a partitioned program: stages flow forward, splits fit, partial sums are summed."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..dialect.collective import COLLECTIVES
from ..errors import Problem
from ..parallel.mesh import Mesh
from ..parallel.sharding import Sharding, sharding, stage

_SUMS = ("AllReduce", "ReduceScatter")


def sharding_problems(model: ir.Model, mesh: Mesh) -> list[Problem]:
    """What contradicts itself or ``mesh`` in the stages of nodes and the shardings of values.

    A node reads from no later stage than its own. A split is of an axis that is there, has its size and names
    ranks that exist. A partial sum is read by reductions over its mesh axis only, and nothing else is summed.
    """
    found: list[Problem] = []
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        found += _node_problems(node, mesh)
        values += node.outputs
    for value in values:
        found += _split_problems(value, sharding(value), mesh)
    for value in model.graph.outputs:
        if (axis := sharding(value).partial) is not None:
            found.append(
                Problem(f"output {value.name!r}", f"is a partial sum over {axis}: nobody reduces it")
            )
    return found


def _node_problems(node: ir.Node, mesh: Mesh) -> Iterator[Problem]:
    place, own = f"node {node.name!r} ({node.op_type})", stage(node)
    if own is not None and not 0 <= own < mesh.pp:
        yield Problem(place, f"is in stage {own} of {mesh.pp}")
    reduces = _reduced(node)
    for value in node.inputs:
        if value is None:
            continue
        maker = value.producer()
        before = None if maker is None else stage(maker)
        if own is not None and before is not None and before > own:
            yield Problem(
                place, f"of stage {own} reads {value.name!r} of stage {before}, which runs behind it"
            )
        partial = sharding(value).partial
        if partial is not None and partial != reduces:
            yield Problem(place, f"reads {value.name!r}, a partial sum over {partial}, before it is reduced")
        elif partial is None and reduces is not None and "sizes" not in node.attributes:
            yield Problem(place, f"sums {value.name!r} over {reduces}, which is no partial sum")


def _reduced(node: ir.Node) -> str | None:
    """The mesh axis over which ``node`` sums."""
    if node.domain != "miaotui" or node.op_type not in COLLECTIVES or node.op_type not in _SUMS:
        return None
    return node.attributes.get_string("over", "tp")


def _split_problems(value: ir.Value, given: Sharding, mesh: Mesh) -> Iterator[Problem]:
    place = f"value {value.name!r}"
    for axis, split in given.splits.items():
        ranks = mesh.length(split.over)
        if any(not 0 <= first < last <= ranks for first, last, _ in split.runs):
            yield Problem(place, f"axis {axis} is split over {split.over} ranks that are not among {ranks}")
        if value.shape is None:
            continue
        if not 0 <= axis < len(value.shape):
            yield Problem(place, f"is split along axis {axis} of {len(value.shape)}")
        elif isinstance(size := value.shape[axis], int) and size != split.size:
            yield Problem(place, f"axis {axis} has {size} elements, its split {split.size}")
