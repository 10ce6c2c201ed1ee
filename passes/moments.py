"""What linear layers read, in second moments: all that rounding, pruning and factoring ask of the data."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..compiler.reference import Array

DAMPING = 0.01
"""Share of the mean channel's power below which methods take a direction's power for noise."""


@dataclass(frozen=True, slots=True)
class Moment:
    """``matrix``: float32[columns, columns], the mean of x·xᵀ over ``rows`` activation rows x.

    The mean squared error that a change D[rows, columns] of a weight makes in a product's output, summed
    over outputs, is trace(D · matrix · Dᵀ).
    """

    matrix: Array
    rows: int

    @property
    def channels(self) -> Array:
        """float32[columns]: root mean square of each channel."""
        return np.asarray(np.sqrt(np.maximum(np.diagonal(self.matrix), 0)))

    def too_few(self, times: float) -> str:
        """Why it was measured on less than ``times`` as many rows as its channels need, or empty.

        They need one for each direction that stands out of the damping, Σ λ / (λ + damping) of the
        eigenvalues λ: few where channels go together, as they do in trained models. What makes up for errors
        in one channel by others moves weights after the noise where rows are as few as directions.
        """
        columns = len(self.matrix)
        if self.rows >= times * columns:
            return ""
        directions = effective(self)
        if self.rows >= times * directions:
            return ""
        return f"{self.rows} rows of inputs in about {directions:.0f} directions, of {columns}, are too few"

    def error(self, change: Array) -> float:
        """Mean squared output error of ``change``, float32[rows, columns], summed over outputs."""
        return float(np.einsum("ij,ij->", change @ self.matrix, change, dtype=np.float64))


_KNOWN: dict[tuple[int, int, int], float] = {}


def effective(moment: Moment) -> float:
    """Number of directions in which a moment has power above the damping, each by its share."""
    columns = len(moment.matrix)
    key = fingerprint(moment), moment.rows, columns
    if key not in _KNOWN:
        matrix = moment.matrix.astype(np.float64)
        power = np.maximum(np.linalg.eigvalsh(matrix), 0)
        noise = DAMPING * float(power.mean()) or 1.0
        _KNOWN[key] = float((power / (power + noise)).sum())
    return _KNOWN[key]


def fingerprint(moment: Moment) -> int:
    """The same for equal moments, which may be computed anew each time they are read."""
    return zlib.crc32(np.ascontiguousarray(moment.matrix[:: max(1, len(moment.matrix) // 16)]).tobytes())


Moments: TypeAlias = Mapping[str, Moment]
"""By the name of the activation that products read, as the imported program calls it; lazily computed
mappings are welcome."""


def joined(names: Iterable[str], moments: Moments | None) -> Callable[[], Moment] | None:
    """What gives the moment of all the activations ``names`` together; None unless all were measured.

    Nothing is read before it is called.
    """
    found = list(dict.fromkeys(names))
    if not found or moments is None or not all(name in moments for name in found):
        return None

    def read() -> Moment:
        first, *others = (moments[name] for name in found)
        for moment in others:
            rows = first.rows + moment.rows
            share = np.float32(first.rows / max(1, rows))
            first = Moment(first.matrix * share + moment.matrix * (1 - share), rows)
        return first

    return read


class LazyMoments(Mapping[str, Moment]):
    """Moments that follow from others, computed each time they are read: of channels that are left, say."""

    __slots__ = ("_makers",)

    def __init__(self, makers: Mapping[str, Callable[[], Moment]]) -> None:
        self._makers = dict(makers)

    def __getitem__(self, name: str) -> Moment:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


class LayeredMoments(Mapping[str, Moment]):
    """``above``, and where it has no entry ``below``."""

    __slots__ = ("_above", "_below")

    def __init__(self, above: Moments, below: Moments) -> None:
        self._above, self._below = above, below

    def __getitem__(self, name: str) -> Moment:
        return self._above[name] if name in self._above else self._below[name]

    def __contains__(self, name: object) -> bool:
        return name in self._above or name in self._below

    def __iter__(self) -> Iterator[str]:
        yield from self._above
        yield from (name for name in self._below if name not in self._above)

    def __len__(self) -> int:
        return sum(1 for _ in self)
