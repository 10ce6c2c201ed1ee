"""Formats of integer weights: how codes, scales and offsets of a tile lie; see kernels/linear_int.h."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .packed import TILE

BLOCK = 32
"""Columns whose activations share a scale."""

SUPERBLOCK = 256
"""Columns that share the first of two levels of scales."""

WIDTHS = (4, 5, 6, 8)
"""Bits a code may have."""

_SCALE = {"SCALE_F16": 2, "SCALE_F32": 4, "SCALE_TWO_LEVEL": 1, "SCALE_ROW": 4}
_OFFSET = {
    "OFFSET_NONE": 0, "OFFSET_ZERO_POINT": 1, "OFFSET_F16": 2, "OFFSET_F32": 4, "OFFSET_TWO_LEVEL": 1
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class IntFormat:
    """``weight = scale * (code - bias) + offset`` with codes of ``bits``.

    ``biased``: the bias is half the codes' range, else 0. ``scale``, ``offset``: C enumerators. ``group``:
    columns that share them, 16 or a multiple of 32; 0 if a row does.

    >>> str(IntFormat(4, True, "SCALE_F16", "OFFSET_NONE", 32))
    'WEIGHT_INT(4, 1, SCALE_F16, OFFSET_NONE)'
    """

    bits: int
    biased: bool
    scale: str
    offset: str
    group: int

    def __str__(self) -> str:
        return f"WEIGHT_INT({self.bits}, {int(self.biased)}, {self.scale}, {self.offset})"

    @property
    def bias(self) -> int:
        """What is taken off every code."""
        return 1 << self.bits - 1 if self.biased else 0

    def tile(self, columns: int) -> np.dtype[Any]:
        """A tile: fields ``head`` (of two levels), ``groups`` of ``record`` and ``codes``; all uint8."""
        blocks = -(-columns // BLOCK)
        per = max(1, self.group // BLOCK) if self.group else blocks
        records = BLOCK // self.group if 0 < self.group < BLOCK else 1
        group = np.dtype(
            [
                ("record", np.uint8, (records, TILE * (_SCALE[self.scale] + _OFFSET[self.offset]))),
                ("codes", np.uint8, (per, self.bits * TILE * BLOCK // 8)),
            ]
        )
        head = 2 * TILE * sum("TWO_LEVEL" in kind for kind in (self.scale, self.offset))
        if not head:
            return np.dtype([("groups", group, (blocks // per,))])
        per_head = SUPERBLOCK // BLOCK // per
        part = np.dtype([("head", np.uint8, (head,)), ("groups", group, (per_head,))])
        return np.dtype([("superblocks", part, (blocks // per // per_head,))])


def interleaved(codes: np.ndarray[Any, np.dtype[np.uint8]], bits: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8[16 * tiles, 32 * blocks] → uint8[tiles, blocks, bytes of a block]."""
    rows, columns = codes.shape
    fours = np.ascontiguousarray(codes).view(np.uint32).reshape(rows // TILE, TILE, columns // 4)
    vectors = np.ascontiguousarray(fours.transpose(0, 2, 1)).view(np.uint8)
    vectors = vectors.reshape(rows // TILE, columns // BLOCK, 8, 4 * TILE)
    if bits == 8:
        return vectors.reshape(*vectors.shape[:2], -1)
    made = np.empty((*vectors.shape[:2], bits, 4 * TILE), np.uint8)
    made[:, :, :4] = vectors[:, :, ::2] & 15 | vectors[:, :, 1::2] << 4
    if bits == 5:
        made[:, :, 4] = 0
        for j in range(8):
            made[:, :, 4] |= (vectors[:, :, j] >> 4) << j
    elif bits == 6:
        made[:, :, 4:] = 0
        for j in range(8):
            made[:, :, 4 + j // 4] |= (vectors[:, :, j] >> 4) << 2 * (j % 4)
    return made.reshape(*made.shape[:2], -1)
