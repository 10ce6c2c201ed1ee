"""Layer by layer: inner values of an executable against the source's own layers, by provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .compare import Difference, difference

if TYPE_CHECKING:
    from ..compiler.reference import Arrays


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """One source layer: its path, the executable's value for it, and how far they are apart."""

    layer: str
    value: str
    difference: Difference

    @property
    def ok(self) -> bool:
        """Whether the layer is within the tolerance."""
        return self.difference.ok


def surviving(layers: Mapping[str, str], computed: Sequence[str]) -> dict[str, str]:
    """Layer path → value name for the layers whose value the model still computes, in the model's order."""
    place = {name: index for index, name in enumerate(computed)}
    kept = [(place[value], path, value) for path, value in layers.items() if value in place]
    return {path: value for _, path, value in sorted(kept, key=lambda item: item[0])}


def compare_layers(
    layers: Mapping[str, str], values: Mapping[str, Any], reference: Arrays, tolerance: float
) -> tuple[LayerDifference, ...]:
    """The table of ``layers`` (path → value name), in order, for those that both sides give.

    A layer whose value the executable holds in another shape of the same size (a flattened batch) is
    compared by its elements in order.
    """
    rows = []
    for path, name in layers.items():
        if path not in reference or name not in values:
            continue
        actual, expected = np.asarray(values[name]), reference[path]
        if actual.size == expected.size:
            actual = actual.reshape(expected.shape)
            rows.append(LayerDifference(path, name, difference(path, actual, expected, tolerance)))
    return tuple(rows)


def first_excess(rows: Sequence[LayerDifference]) -> LayerDifference | None:
    """The first layer in execution order that exceeds its tolerance."""
    return next((row for row in rows if not row.ok), None)
