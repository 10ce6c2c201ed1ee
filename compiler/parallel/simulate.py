"""A partitioned program evaluated on one machine: simulated ranks that meet in collectives, by numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..dialect.collective import REFERENCE
from ..errors import InternalError
from ..ir.evaluate import evaluate
from ..program import Program
from ..reference import Array, Arrays
from .plan import Collective
from .sharding import sharding
from .steps import rank_steps


def simulate(
    whole: Program, ranks: Sequence[Program], inputs: Mapping[str, Array], entry: str = "main"
) -> Arrays:
    """Outputs of an entry of ``whole``, computed by its ``ranks``, the programs of a group's shards in order.

    What is split of the inputs is handed out and what is split of the outputs joined, as the shardings of
    ``whole`` say. Raises: InternalError if ranks differ in what they hold whole or where they meet; else
    as ``evaluate``.
    """
    graph, count = whole.entries[entry].graph, len(ranks)
    known = [
        {str(value.name): _held(value, inputs[str(value.name)], rank) for value in graph.inputs}
        for rank in range(count)
    ]
    for steps in zip(*(rank_steps(program, entry) for program in ranks), strict=True):
        first = steps[0]
        if isinstance(first, Collective):
            if any(not isinstance(s, Collective) or (s.name, s.op) != (first.name, first.op) for s in steps):
                raise InternalError(f"collective {first.name!r} is not one that all ranks come to")
            given = [held[first.input] for held in known]
            met = REFERENCE[first.op](given, first.dim, first.sizes)
            for held, array in zip(known, met, strict=True):
                held[first.output] = array
            continue
        for held, step in zip(known, steps, strict=True):
            if isinstance(step, Collective):
                raise InternalError(f"collective {step.name!r} is not one that all ranks come to")
            held |= evaluate(step, {str(v.name): held[str(v.name)] for v in step.graph.inputs})
    return {
        str(value.name): _joined(value, [held[str(value.name)] for held in known]) for value in graph.outputs
    }


def _held(value: ir.Value, array: Array, rank: int) -> Array:
    for axis, split in sharding(value).splits.items():
        array = np.take(array, split.held(rank), axis)
    return array


def _joined(value: ir.Value, given: Sequence[Array]) -> Array:
    splits = sharding(value).splits
    if not splits:
        if any(not np.array_equal(array, given[0], equal_nan=array.dtype.kind == "f") for array in given):
            raise InternalError(f"ranks differ in {value.name!r}, which all have the whole of")
        return given[0]
    ((axis, split),) = splits.items()
    shape = list(given[0].shape)
    shape[axis] = split.size
    whole = np.empty(shape, given[0].dtype)
    for rank, array in enumerate(given):
        whole[(slice(None),) * axis + (split.held(rank),)] = array
    return whole
