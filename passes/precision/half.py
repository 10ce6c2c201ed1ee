"""float16 as a number format: its limits, which constants survive it, and lazily converted weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...compiler.reference import Array

GREATEST = 65504.0
"""The greatest finite float16."""

MASK = -30000.0
"""What a float32 mask such as -3.4e38 becomes: two of them, or one and a score, still don't reach -inf."""

MASKED = -1e8
"""Constants and ranges below this are masks, no data."""

LOSS = 2e-3
"""Greatest relative L2 error a weight may suffer; rounding alone costs about 3e-4."""


def loss(tensor: ir.TensorProtocol, *, saturate: bool, divides: bool) -> str:
    """Why the float32 ``tensor`` can't be float16, or empty. Reads it once.

    ``saturate``: values out of range may be clamped (masks, bounds of a Clip). ``divides``: its elements
    are divided by, so that none may become zero; a lone scalar (an epsilon) may neither.
    """
    array = np.asarray(tensor.numpy())
    if array.size == 0:
        return ""
    finite = array[np.isfinite(array)]
    beyond = finite[np.abs(finite) > GREATEST]
    if beyond.size and not (saturate or (beyond <= MASKED).all()):
        worst = float(beyond[np.abs(beyond).argmax()])
        return f"constant {tensor.name} reaches {worst:.3g}, float16 ends at 65504"
    inside = finite[np.abs(finite) <= GREATEST]
    small = inside.astype(np.float16)
    if (divides or array.size == 1) and np.any((small == 0) & (inside != 0)):
        least = float(np.abs(inside[inside != 0]).min())
        return f"constant {tensor.name} holds {least:.3g}, which is 0 in float16"
    norm = float(np.linalg.norm(inside.ravel()))
    error = float(np.linalg.norm((small.astype(np.float32) - inside).ravel()))
    if norm > 0 and error > LOSS * norm:
        return f"constant {tensor.name} would lose {error / norm:.1%} of its norm in float16"
    return ""


def half(tensor: ir.TensorProtocol, name: str, *, bounds: bool = False) -> ir.LazyTensor:
    """``tensor`` as float16, converted when read and not kept in memory.

    Masks become ``MASK``; with ``bounds`` (of a Clip) what is out of range becomes the nearest finite value.
    """

    def convert() -> ir.TensorProtocol:
        return ir.tensor(_saturated(np.asarray(tensor.numpy()), bounds), name=name)

    return ir.LazyTensor(convert, ir.DataType.FLOAT16, ir.Shape(tensor.shape.numpy()), name=name)


def _saturated(array: Array, bounds: bool) -> Array:
    wide = np.abs(array) > GREATEST
    if wide.any():
        finite = wide & np.isfinite(array)
        array = np.where(finite, np.clip(array, -GREATEST if bounds else MASK, GREATEST), array)
    return array.astype(np.float16)
