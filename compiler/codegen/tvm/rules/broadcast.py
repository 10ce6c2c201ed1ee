"""Tensors of different shapes read as if they had one: sizes of 1 are repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..lowering import Lowering


def merged(b: Lowering, shapes: Sequence[Sequence[Any]]) -> list[Any]:
    """The shape that all broadcast to."""
    rank = max(map(len, shapes))
    result: list[Any] = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            result[axis] = _wider(b, result[axis], b.size(size))
    return result


def _wider(b: Lowering, one: Any, other: Any) -> Any:
    if isinstance(other, int):
        return one if other == 1 else other
    if isinstance(one, int):
        return other if one == 1 else one
    return one if _equal(b, one, other) else b.tirx.max(one, other)


def _equal(b: Lowering, one: Any, other: Any) -> bool:
    return bool(one.same_as(other) or b.analyzer.can_prove_equal(one, other))


def read(b: Lowering, tensor: Any, indices: Sequence[Any], shape: Sequence[Any]) -> Any:
    """``tensor`` at ``indices`` of the ``shape`` it is broadcast to."""
    own = [b.size(s) for s in tensor.shape]
    places = []
    for size, index, whole in zip(
        own, indices[len(indices) - len(own) :], shape[len(shape) - len(own) :], strict=True
    ):
        if isinstance(size, int) and size == 1:
            places.append(b.tirx.const(0, "int64"))
        elif isinstance(size, int) or (not isinstance(whole, int) and _equal(b, size, whole)):
            places.append(index)
        else:
            places.append(b.tirx.Select(size == 1, b.tirx.const(0, "int64"), index))
    return tensor(*places) if places else tensor()
