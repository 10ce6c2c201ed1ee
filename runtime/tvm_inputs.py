"""Host arrays where kernels of TVM can read them: contiguous, from a cache line on, in memory used again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ..compiler.reference import Array
from .tensors import address_of
from .tvm_tensors import tensor_of

ALIGNMENT = 64
"""Bytes: compiled code reads whole registers from the beginning of every tensor."""

_SMALL = 16 << 10
"""Bytes that are copied sooner than one knows where they lie."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An array as it is passed to a kernel. ``addresses``: those of its bytes."""

    array: Array
    tensor: Any
    addresses: range

    @classmethod
    def of(cls, array: Array) -> Self:
        """An array that is aligned."""
        first = address_of(array)
        return cls(array, tensor_of(array), range(first, first + array.nbytes))


@dataclass(frozen=True, slots=True)
class Staging:
    """Memory for inputs by name, of the forms they had last. For one run at a time."""

    _held: dict[str, Placed] = field(default_factory=dict)

    def placed(self, name: str, array: Array) -> Placed:
        """The array itself if it lies well and is not small, else a copy that the next call writes over."""
        held = self._held.get(name)
        if held is None or held.array.shape != array.shape or held.array.dtype != array.dtype:
            if array.nbytes > _SMALL and is_aligned(array):
                return Placed.of(array)
            held = self._held[name] = Placed.of(aligned_copy(array))
            return held
        if array.nbytes > _SMALL and is_aligned(array):
            return Placed.of(array)
        held.array[...] = array
        return held

    def clear(self) -> None:
        """Give the memory back."""
        self._held.clear()


def is_aligned(array: Array) -> bool:
    """Whether kernels can read it where it lies.

    An empty one never is: numpy may give it strides of 0, which TVM takes for one that is not whole.
    """
    flags = array.flags
    return bool(array.size and flags.c_contiguous and flags.writeable and address_of(array) % ALIGNMENT == 0)


def aligned_copy(array: Array) -> Array:
    """A copy, contiguous and at a cache line."""
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -address_of(memory) % ALIGNMENT
    new = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    new[...] = array
    return new
