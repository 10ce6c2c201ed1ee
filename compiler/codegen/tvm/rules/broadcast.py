"""Tensors of different shapes read as if they had one: sizes of 1 are repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..lowering import Lowering


def read(b: Lowering, tensor: Any, indices: Sequence[Any], shape: Sequence[Any]) -> Any:
    """``tensor`` at ``indices`` of the ``shape`` it is broadcast to."""
    own = [b.size(s) for s in tensor.shape]
    places = []
    for size, index, whole in zip(
        own, indices[len(indices) - len(own) :], shape[len(shape) - len(own) :], strict=True
    ):
        if isinstance(size, int) and size == 1:
            places.append(b.tirx.const(0, "int64"))
        elif isinstance(size, int) or (not isinstance(whole, int) and b.equal(size, whole)):
            places.append(index)
        else:
            places.append(b.tirx.Select(size == 1, b.tirx.const(0, "int64"), index))
    return tensor(*places) if places else tensor()
