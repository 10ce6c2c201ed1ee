"""What two thin products gain over a whole one, by the cost model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...compiler.cost import Device

ROWS = (1, 128)
"""Rows of activations for which a product has to gain: a token that is decoded, a prompt or a sentence."""


@dataclass(frozen=True, slots=True)
class Product:
    """One or more products of one input with weights [rows, columns]; ``rank``: of the factors, 0 without.

    Factors of several weights share the first.
    """

    rows: Sequence[int]
    columns: int
    rank: int = 0

    @property
    def size(self) -> int:
        """Elements of all weights."""
        return sum(rows * columns for rows, columns in self.shapes)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of all weights."""
        if self.rank:
            return [(self.rank, self.columns), *((rows, self.rank) for rows in self.rows)]
        return [(rows, self.columns) for rows in self.rows]

    def seconds(self, device: Device, count: int, bits: int) -> float:
        """Time for ``count`` rows of activations with weights of ``bits`` bits."""
        return sum(
            device.seconds(
                2.0 * count * rows * columns, rows * columns * bits / 8 + 4.0 * count * (rows + columns)
            )
            for rows, columns in self.shapes
        )


def break_even(rows: int, columns: int) -> float:
    """The rank at which the factors are as large as the weight."""
    return rows * columns / (rows + columns)


def gain(whole: Sequence[Product], factored: Sequence[Product], device: Device, bits: int) -> float:
    """How many times as fast the factors are, where they gain least of ``ROWS``."""
    return min(
        sum(p.seconds(device, count, bits) for p in whole)
        / sum(p.seconds(device, count, bits) for p in factored)
        for count in ROWS
    )
