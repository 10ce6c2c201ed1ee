"""Scales and offsets of integer weights in the fewest bytes that hold them exactly, in the order of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ....reference import Array
from .int_format import SUPERBLOCK
from .packed import TILE
from .two_level import two_level


@dataclass(frozen=True, slots=True)
class Scales:
    """``records``: [rows, groups] of what stands before every group, ``heads``: [rows, superblocks]."""

    records: tuple[Array, ...]
    heads: tuple[Array, ...]

    def record(self, start: int, stop: int) -> Array:
        """Of these rows: uint8[tiles, groups, bytes]."""
        return _tiled(self.records, start, stop)

    def head(self, start: int, stop: int) -> Array:
        """Of these rows: uint8[tiles, superblocks, bytes]."""
        return _tiled(self.heads, start, stop)


def _tiled(parts: tuple[Array, ...], start: int, stop: int) -> Array:
    made = []
    for part in parts:
        rows = part[start:stop]
        if len(rows) % TILE:
            rows = np.pad(rows, ((0, -len(rows) % TILE), (0, 0)))
        tiles = rows.reshape(len(rows) // TILE, TILE, -1).transpose(0, 2, 1)
        made.append(np.ascontiguousarray(tiles).view(np.uint8))
    return np.concatenate(made, 2)


def common_scales(
    scales: Sequence[Array],
    offsets: Sequence[Array | None],
    zeros: Sequence[Array | None],
    group: int,
    columns: int,
) -> tuple[str, str, list[Scales]]:
    """The C enumerators of scale and offset that hold all of several weights, and each one's.

    scales, offsets: [rows, groups]; zeros: what is taken off the codes, of the same shape, for all or none.
    """
    wide = [np.ascontiguousarray(s, np.float32) for s in scales]
    if not group:
        kind, parts = "SCALE_ROW", wide
    elif all(_are_halves(s) for s in wide):
        kind, parts = "SCALE_F16", [s.astype(np.float16) for s in wide]
    else:
        kind, parts = "SCALE_F32", wide
    records = [[part] for part in parts]
    if zeros[0] is not None:
        for record, zero in zip(records, zeros, strict=True):
            assert zero is not None
            record.append((zero - 128).astype(np.int8))
        return kind, "OFFSET_ZERO_POINT", [Scales(tuple(r), ()) for r in records]
    moved = None
    if any(o is not None for o in offsets):
        moved = [
            np.zeros_like(s) if o is None else np.ascontiguousarray(o, np.float32)
            for s, o in zip(wide, offsets, strict=True)
        ]
    if kind == "SCALE_F32" and SUPERBLOCK % group == 0 and columns % SUPERBLOCK == 0:
        found = _two_level(wide, moved, SUPERBLOCK // group)
        if found is not None:
            return "SCALE_TWO_LEVEL", "OFFSET_NONE" if moved is None else "OFFSET_TWO_LEVEL", found
    if moved is None:
        return kind, "OFFSET_NONE", [Scales(tuple(r), ()) for r in records]
    are_halves = all(_are_halves(m) for m in moved)
    for record, array in zip(records, moved, strict=True):
        record.append(array.astype(np.float16) if are_halves else array)
    return kind, "OFFSET_F16" if are_halves else "OFFSET_F32", [Scales(tuple(r), ()) for r in records]


def _are_halves(array: Array) -> bool:
    with np.errstate(over="ignore"):
        return bool((array.astype(np.float16) == array).all())


def _two_level(scales: list[Array], offsets: list[Array] | None, groups: int) -> list[Scales] | None:
    made = []
    for index, scale in enumerate(scales):
        arrays = [scale] if offsets is None else [scale, offsets[index]]
        found = [two_level(a.reshape(len(a), -1, groups)) for a in arrays]
        if any(f is None for f in found):
            return None
        levels = [f for f in found if f is not None]
        made.append(
            Scales(tuple(f.second.reshape(scale.shape) for f in levels), tuple(f.first for f in levels))
        )
    return made
