"""Sharding of values and stages of nodes: annotations in metadata that follow every rewrite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from ..reference import Array
from .mesh import MeshAxis

KEY = "miaotui.sharding"
STAGE = "miaotui.stage"


@dataclass(frozen=True, slots=True)
class Split:
    """How the elements along one axis of a value lie on the ranks along mesh axis ``over``.

    ``runs``: stretches of elements, in order, each with the first rank that holds it, the one behind the
    last, and its length. Ranks hold what is theirs in this order, without gaps. A plain split has one run a
    rank; a fused query, key and value has one for each part and rank; a KV head that several ranks share
    lies on all of them.

    >>> Split.even("tp", 6, 2).runs
    ((0, 1, 3), (1, 2, 3))
    >>> Split.even("tp", 6, 2).sizes(2)
    (3, 3)
    """

    over: MeshAxis
    runs: tuple[tuple[int, int, int], ...]

    @classmethod
    def even(cls, over: MeshAxis, size: int, ranks: int, unit: int = 1) -> Split:
        """``size`` elements in contiguous shares, whole multiples of ``unit``, the first ones the larger."""
        whole, rest = divmod(size // unit, ranks)
        sizes = [(whole + (rank < rest)) * unit for rank in range(ranks)]
        return cls(over, tuple((rank, rank + 1, length) for rank, length in enumerate(sizes)))

    @classmethod
    def of(cls, over: MeshAxis, first: Array, last: Array) -> Split:
        """Of the ranks ``first`` to ``last`` (exclusive) of every element, int[size]."""
        edges = np.flatnonzero((np.diff(first) != 0) | (np.diff(last) != 0)) + 1
        bounds = [0, *edges.tolist(), len(first)]
        pairs = pairwise(bounds)
        return cls(over, tuple((int(first[a]), int(last[a]), b - a) for a, b in pairs))

    @property
    def size(self) -> int:
        """Elements of the whole."""
        return sum(length for _, _, length in self.runs)

    def ranks(self) -> tuple[Array, Array]:
        """First rank and the one behind the last, of every element."""
        lengths = [length for _, _, length in self.runs]
        first, last = ([run[side] for run in self.runs] for side in (0, 1))
        return np.repeat(first, lengths), np.repeat(last, lengths)

    def held(self, rank: int) -> Array:
        """int64: which elements ``rank`` holds, in order."""
        first, last = self.ranks()
        return np.flatnonzero((first <= rank) & (rank < last))

    def sizes(self, ranks: int) -> tuple[int, ...]:
        """How many elements each rank holds."""
        return tuple(sum(n for a, b, n in self.runs if a <= rank < b) for rank in range(ranks))

    @property
    def is_plain(self) -> bool:
        """Whether each element lies on one rank and ranks hold contiguous shares in their order."""
        return all((a, b) == (rank, rank + 1) for rank, (a, b, _) in enumerate(self.runs))


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a value lies on the mesh: split along axes, or a ``partial`` sum over a mesh axis; else whole."""

    splits: Mapping[int, Split] = field(default_factory=dict)
    partial: MeshAxis | None = None

    def dumps(self) -> str:
        """As JSON."""
        splits = {str(axis): [split.over, *split.runs] for axis, split in sorted(self.splits.items())}
        return json.dumps({"splits": splits, "partial": self.partial}, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Sharding:
        """From JSON."""
        data: dict[str, Any] = json.loads(text)
        splits = {
            int(axis): Split(over, tuple((int(a), int(b), int(n)) for a, b, n in runs))
            for axis, (over, *runs) in data["splits"].items()
        }
        return cls(splits, cast("MeshAxis | None", data["partial"]))


WHOLE = Sharding()
"""Of a value that every rank has all of."""


def sharding(value: ir.Value) -> Sharding:
    """The value's sharding, ``WHOLE`` if it has none."""
    text = value.metadata_props.get(KEY)
    return WHOLE if text is None else Sharding.loads(text)


def set_sharding(value: ir.Value, found: Sharding) -> None:
    """Annotate ``value``."""
    if found == WHOLE:
        value.metadata_props.pop(KEY, None)
    else:
        value.metadata_props[KEY] = found.dumps()


def stage(node: ir.Node) -> int | None:
    """The node's pipeline stage; None if it has none."""
    text = node.metadata_props.get(STAGE)
    return None if text is None else int(text)


def set_stage(node: ir.Node, number: int | None) -> None:
    """Put ``node`` into a stage, or none."""
    if number is None:
        node.metadata_props.pop(STAGE, None)
    else:
        node.metadata_props[STAGE] = str(number)


def merge_stages(node: ir.Node, others: Iterable[ir.Node]) -> None:
    """The stage of a node that stands for ``others``: the last of them, so that no edge leads back."""
    known = [number for other in (node, *others) if (number := stage(other)) is not None]
    if known:
        set_stage(node, max(known))


def clear(model: ir.Model) -> None:
    """Drop all shardings: of a rank's own program, whose values are all its own."""
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values(), *(o for n in graph for o in n.outputs)):
            value.metadata_props.pop(KEY, None)
