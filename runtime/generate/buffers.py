"""The KV cache's memory: one buffer per state tensor and row range, grown and thinned out by one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...compiler.errors import InternalError
from ...compiler.program import Decoding, TensorSpec
from ...compiler.reference import Array

_ALIGNMENT = 64
"""Bytes: a cache line, and an AVX-512 register."""


class StateBuffers:
    """[rows, heads, capacity, width] for every state tensor, twice if past and present can't share one.

    ``side``: which of the two holds the past; always 0 where one buffer serves both.
    """

    __slots__ = ("_specs", "capacity", "rows", "side", "sides")

    def __init__(
        self, decoding: Decoding, inputs: Sequence[TensorSpec], *, rows: int, capacity: int, in_place: bool
    ) -> None:
        specs = {spec.name: spec for spec in inputs}
        self._specs = [specs[tensor.input] for tensor in decoding.state]
        self.rows, self.capacity, self.side = rows, capacity, 0
        self.sides: list[list[Array]] = [self._empty() for _ in range(1 if in_place else 2)]

    @property
    def past(self) -> list[Array]:
        """What the next run reads."""
        return self.sides[self.side]

    @property
    def present(self) -> list[Array]:
        """What the next run writes: the past itself, or the other side."""
        return self.sides[self.side - 1]

    def flip(self) -> None:
        """After a run: what was the present is the past."""
        self.side = (self.side + 1) % len(self.sides)

    def grow(self, capacity: int) -> None:
        """Room for ``capacity`` tokens a row; what is held stays."""
        held, old = self.past, self.capacity
        self.capacity, self.side = capacity, 0
        self.sides = [self._empty() for _ in self.sides]
        for new, past in zip(self.past, held, strict=True):
            new[:, :, :old] = past

    def keep(self, rows: Sequence[int]) -> None:
        """Only ``rows`` from now on, in that order."""
        held, self.rows, self.side = self.past, len(rows), 0
        self.sides = [self._empty() for _ in self.sides]
        for new, past in zip(self.past, held, strict=True):
            for place, row in enumerate(rows):
                new[place] = past[row]

    def settle(self, row: int, side: int) -> None:
        """Bring what ``row`` wrote by itself on ``side`` to the side that all rows are on."""
        if side != self.side:
            for here, there in zip(self.sides[self.side], self.sides[side], strict=True):
                here[row] = there[row]

    def _empty(self) -> list[Array]:
        return [aligned((self.rows, *self._fixed(s), self.capacity, s.shape[3]), s) for s in self._specs]  # type: ignore[index]

    def _fixed(self, spec: TensorSpec) -> tuple[int, ...]:
        shape = spec.shape or ()
        if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            raise InternalError(
                f"state {spec} is not [batch, heads, capacity, width] with fixed heads, width"
            )
        return (shape[1],)


def aligned(shape: Sequence[Any], spec: TensorSpec) -> Array:
    """Zeros of ``shape`` that begin at a cache line."""
    dtype = spec.dtype.numpy()
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
