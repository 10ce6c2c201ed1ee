"""Buffers that stay on a device: bound to runs by address, written in place, copied where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from ..compiler.reference import Array


@dataclass(frozen=True, slots=True)
class Buffer:
    """A contiguous tensor on a device, or some first-axis rows of one; ``owner`` keeps the memory alive."""

    owner: Any
    address: int
    shape: tuple[int, ...]
    dtype: ir.DataType

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return prod(self.shape) * int(self.dtype.itemsize)

    def rows(self, start: int, stop: int) -> Buffer:
        """``[start:stop]`` of the first axis, where it lies."""
        stride = prod(self.shape[1:]) * int(self.dtype.itemsize)
        return Buffer(self.owner, self.address + start * stride, (stop - start, *self.shape[1:]), self.dtype)


class Memory(Protocol):
    """A device's memory, and runs over it. ``captures``: whether a run can be captured as a graph."""

    captures: bool

    def empty(self, shape: Sequence[int], dtype: ir.DataType) -> Buffer:
        """A new buffer of zeros. Raises: DeviceError if there is no room."""
        ...

    def write(self, buffer: Buffer, array: Array) -> None:
        """Copy ``array`` into a whole buffer, which stays where it is."""
        ...

    def read(self, buffer: Buffer) -> Array:
        """A copy of a whole buffer, once every run before is over."""
        ...

    def grown(self, old: Buffer, new: Buffer) -> None:
        """Copy ``old`` to the beginning of axis 2 of ``new``; the rest of it becomes zeros."""
        ...

    def gathered(self, old: Buffer, new: Buffer, rows: Sequence[int]) -> None:
        """Copy ``rows`` of ``old`` to ``new``, in that order."""
        ...

    def bind(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer]) -> Any:
        """Inputs and the wanted outputs bound to where they lie."""
        ...

    def run(self, binding: Any, graph: int | None = None) -> None:
        """Run over a binding; captured as graph number ``graph`` the first time, replayed from then on.

        Raises: CompileError if a kernel fails, DeviceError if the device does.
        """
        ...


class Mirrored:
    """A small buffer with a copy on the host; each side is brought up to date only when it is looked at."""

    __slots__ = ("_array", "_known", "_memory", "_stale", "buffer")

    def __init__(self, memory: Memory, shape: Sequence[int], dtype: ir.DataType = ir.DataType.INT64) -> None:
        self._memory, self.buffer = memory, memory.empty(shape, dtype)
        self._array = np.zeros(shape, dtype.numpy())
        self._known = self._array.copy()
        self._stale = False

    @property
    def array(self) -> Array:
        """What it holds; may be written to."""
        if self._stale:
            self._array[...] = self._memory.read(self.buffer)
            self._known[...] = self._array
            self._stale = False
        return self._array

    def written(self) -> None:
        """A run has written the device's side."""
        self._stale = True

    def became(self, array: Array) -> None:
        """A run has written ``array`` to the device's side, as is known without looking."""
        self._array[...] = array
        self._known[...] = array
        self._stale = False

    def send(self) -> None:
        """Bring the device's side up to date: a copy only where the host's side was changed."""
        if not self._stale and not np.array_equal(self._array, self._known):
            self._memory.write(self.buffer, self._array)
            self._known[...] = self._array
