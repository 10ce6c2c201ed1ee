"""The activations that ONNX Runtime fuses into FusedConv and FusedGemm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UnsupportedError
from ..reference import Array
from .base import text

ACTIVATION = text()


def activate(x: Array, name: str | None, scalars: Sequence[float]) -> Array:
    """``name`` applied to ``x``; ``scalars`` are the activation's parameters in its operator's order.

    Raises: UnsupportedError for a name ONNX Runtime does not fuse.
    """
    match name:
        case None | "":
            return x
        case "Relu":
            return np.maximum(x, 0)
        case "Sigmoid":
            return np.asarray(1 / (1 + np.exp(-x)))
        case "Tanh":
            return np.asarray(np.tanh(x))
        case "LeakyRelu":
            return np.where(x < 0, scalars[0] * x, x)
        case "Clip":
            return np.clip(x, scalars[0], scalars[1])
        case "HardSigmoid":
            return np.clip(scalars[0] * x + scalars[1], 0, 1)
    raise UnsupportedError(f"activation {name!r}", "has no reference semantics")
