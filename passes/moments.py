"""What linear layers read, in second moments: all that rounding, pruning and factoring ask of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ..compiler.reference import Array


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

    def error(self, change: Array) -> float:
        """Mean squared output error of ``change``, float32[rows, columns], summed over outputs."""
        return float(np.einsum("ij,ij->", change @ self.matrix, change, dtype=np.float64))


Moments: TypeAlias = Mapping[str, Moment]
"""By the name of the activation that products read, as the imported program calls it; lazily computed
mappings are welcome."""
