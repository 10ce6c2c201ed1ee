"""Mesh: the ranks of a partitioned program as a grid of replicas, pipeline stages and tensor shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import OptionError, Problem

MeshAxis: TypeAlias = Literal["dp", "pp", "tp"]

AXES: tuple[MeshAxis, ...] = ("dp", "pp", "tp")
"""From the outermost: ranks next to each other share a stage and exchange most."""


@dataclass(frozen=True, slots=True, order=True)
class Coordinate:
    """Where a rank stands: its replica, its pipeline stage, its tensor shard."""

    dp: int
    pp: int
    tp: int


@dataclass(frozen=True, slots=True)
class Mesh:
    """How many replicas (``dp``), pipeline stages (``pp``) and tensor shards (``tp``) there are.

    Raises: OptionError for a size below one.

    >>> mesh = Mesh(dp=2, pp=2, tp=2)
    >>> mesh.size, mesh.coordinate(5)
    (8, Coordinate(dp=1, pp=0, tp=1))
    >>> mesh.group("tp", 5)
    (4, 5)
    """

    dp: int = 1
    pp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        wrong = [axis for axis in AXES if self.length(axis) < 1]
        if wrong:
            raise OptionError.of(
                [
                    Problem(f"--{axis}", f"{self.length(axis)} is less than 1", "give a count such as 2")
                    for axis in wrong
                ]
            )

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.dp * self.pp * self.tp

    def length(self, axis: MeshAxis) -> int:
        """How many ranks lie along ``axis``."""
        return {"dp": self.dp, "pp": self.pp, "tp": self.tp}[axis]

    def rank(self, at: Coordinate) -> int:
        """The number of the rank at a coordinate, tensor shards counted first."""
        return (at.dp * self.pp + at.pp) * self.tp + at.tp

    def coordinate(self, rank: int) -> Coordinate:
        """The coordinate of rank ``rank``."""
        rest, tp = divmod(rank, self.tp)
        return Coordinate(rest // self.pp, rest % self.pp, tp)

    def coordinates(self) -> Iterator[Coordinate]:
        """All of them, by rank."""
        return map(self.coordinate, range(self.size))

    def group(self, axis: MeshAxis, rank: int) -> tuple[int, ...]:
        """The ranks that differ from ``rank`` along ``axis`` only, itself among them, in order."""
        at = self.coordinate(rank)
        here = {"dp": at.dp, "pp": at.pp, "tp": at.tp}
        return tuple(self.rank(Coordinate(**{**here, axis: i})) for i in range(self.length(axis)))

    def __str__(self) -> str:
        return f"dp={self.dp} pp={self.pp} tp={self.tp}"
