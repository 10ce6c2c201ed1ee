"""How far a program with other weights is from the source, as a figure that adds up over weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.reference import Arrays
from ..runtime.compare import Limit, difference, language_metrics


@dataclass(frozen=True, slots=True)
class Metric:
    """The error a budget is about: mean KL of logits if there is a ``vocabulary``, else the scaled error.

    Small errors of independent causes add up in squares; KL is of the second order already. So ``additive``
    is the figure of which a whole's is about the sum of its parts', ``figure`` the error it stands for.
    """

    vocabulary: int | None

    @property
    def name(self) -> str:
        """``kl`` or ``scaled``."""
        return "scaled" if self.vocabulary is None else "kl"

    def additive(self, figure: float) -> float:
        """The additive form of an error."""
        return figure**2 if self.vocabulary is None else figure

    def figure(self, additive: float) -> float:
        """The error that an additive figure stands for."""
        return math.sqrt(additive) if self.vocabulary is None else additive

    def distance(self, actual: Sequence[Arrays], expected: Sequence[Arrays]) -> float:
        """The additive figure between two programs' outputs on the same inputs.

        KL is the mean over all positions, the scaled error the greatest of any output.
        """
        if self.vocabulary is None:
            pairs = [
                (run[name], right)
                for run, wanted in _pairs(actual, expected)
                for name, right in wanted.items()
            ]
            return self.additive(max((_scaled(a, b) for a, b in pairs), default=0.0))
        limit = Limit(0.0, 0.0, self.vocabulary)
        total, positions = 0.0, 0
        for run, wanted in _pairs(actual, expected):
            for name, right in wanted.items():
                if limit.judges_as_logits(right):
                    if not np.isfinite(run[name]).all():
                        return math.inf
                    found = language_metrics(run[name], right)
                    total += found.mean_kl * found.positions
                    positions += found.positions
        return total / max(1, positions)


def _pairs(
    actual: Sequence[Arrays], expected: Sequence[Arrays]
) -> Sequence[tuple[Arrays, Mapping[str, Any]]]:
    return list(zip(actual, expected, strict=True))


def _scaled(actual: Any, expected: Any) -> float:
    """Of floats; whether labels and indices stay the same is for the proof to say."""
    if np.asarray(expected).dtype.kind not in "fc":
        return 0.0
    return difference("", actual, expected).scaled
