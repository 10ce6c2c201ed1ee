"""Units of a layer as they lie on ranks: each element's unit says which ranks hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import onnx_ir as ir

from ...compiler.parallel.sharding import Sharding, Split, sharding
from ...compiler.reference import Array
from ..sparsity.flow import NONE, Flow
from .rules import RULES


@dataclass(slots=True)
class ShareFlow(Flow):
    """Where elements that only some of ``ranks`` hold are; a unit stands for a stretch of ranks."""

    ranks: int = 1

    @classmethod
    def within(
        cls,
        graph: ir.Graph | ir.Function | None,
        ranks: int,
        edges: frozenset[ir.Value],
        ends: frozenset[ir.Value],
        wholes: frozenset[ir.Value],
    ) -> Self:
        """Nothing known yet."""
        return cls(RULES, graph, edges=edges, ends=ends, wholes=wholes, ranks=ranks)

    @classmethod
    def annotated(cls, graph: ir.Graph, ranks: int, rank: int) -> Self:
        """What the values' shardings say, ``rank`` chosen as the one whose elements stay."""
        flow = cls(RULES, graph, ranks=ranks)
        made = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *made):
            if splits := sharding(value).splits:
                flow.axes[value] = {axis: units_of(*split.ranks(), ranks) for axis, split in splits.items()}
        first, last = (found.reshape(-1) for found in np.indices((ranks + 1, ranks + 1)))
        flow.kept = (first <= rank) & (rank < last)
        return flow


def units_of(first: Array, last: Array, ranks: int) -> Array:
    """The unit of elements on the ranks ``first`` to ``last`` (exclusive); NONE for those on all."""
    return np.where((first == 0) & (last == ranks), NONE, first * (ranks + 1) + last).astype(np.int32)


def ranks_of(units: Array, ranks: int) -> tuple[Array, Array]:
    """First rank and the one behind the last of each unit."""
    first, last = np.divmod(units, ranks + 1)
    return np.where(units == NONE, 0, first), np.where(units == NONE, ranks, last)


def split_of(units: Array, ranks: int) -> Split:
    """The same as a sharding of an axis."""
    return Split.of("tp", *ranks_of(units, ranks))


def sharding_of(axes: dict[int, Array], ranks: int) -> Sharding:
    """Of a value whose units lie along ``axes``."""
    return Sharding({axis: split_of(units, ranks) for axis, units in axes.items()})


def even_units(size: int, ranks: int, unit: int = 1) -> Array:
    """``size`` elements in contiguous shares of whole multiples of ``unit``, nearly even."""
    return units_of(*Split.even("tp", size, ranks, unit).ranks(), ranks)
