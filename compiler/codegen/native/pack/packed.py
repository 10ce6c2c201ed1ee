"""A weight as the kernels read it: tiles of 16 rows, in one of the formats of ``kernels/linear.h``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ....reference import Array

TILE = 16
"""Rows of a weight that lie interleaved: one vector register of outputs."""


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight[rows, columns] in the order its kernel reads it.

    ``format``: its C enumerator. ``group``: columns that share a scale, 0 where the format has none.
    ``rows``, ``columns``: of the weight before padding; of a gated pair, ``rows`` counts one of the two.
    ``size``: bytes. ``chunks()``: its bytes in order, uint8 arrays, made as they are asked for, so that a
    large weight is never in memory twice. ``tiled``: one tile lies behind the other with all that belongs to
    it, so that the bytes of two weights in a row are those of both.
    """

    format: str
    group: int
    rows: int
    columns: int
    size: int
    chunks: Callable[[], Iterator[Array]]
    tiled: bool = True
