"""float16 and bfloat16 as number formats: limits, which constants survive, and lazily converted weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.reference import Array

GREATEST = 65504.0
"""The greatest finite float16."""

MASK = -30000.0
"""What a float32 mask such as -3.4e38 becomes: two of them, or one and a score, still don't reach -inf."""

MASKED = -1e8
"""Constants and ranges below this are masks, no data."""


@dataclass(frozen=True, slots=True)
class Format:
    """A 16-bit format. ``greatest``: finite number; ``mask``: what a float32 mask becomes.

    ``least``: of an activation's greatest values, below which digits are lost; ``loss``: greatest relative L2
    error a weight may suffer, several times what rounding alone costs (3e-4, 2e-3); ``exact``: integers up to
    which all are numbers of the format.
    """

    dtype: ir.DataType
    name: str
    tag: str
    greatest: float
    mask: float
    least: float
    loss: float
    exact: int


FP16 = Format(ir.DataType.FLOAT16, "float16", "fp16", GREATEST, MASK, 1e-3, 2e-3, 2048)
BF16 = Format(ir.DataType.BFLOAT16, "bfloat16", "bf16", 3.3895313892515355e38, -1e38, 1e-34, 8e-3, 256)


def loss(tensor: ir.TensorProtocol, *, saturate: bool, divides: bool, form: Format = FP16) -> str:
    """Why the float32 ``tensor`` can't be ``form``, or empty. Reads it once.

    ``saturate``: values out of range may be clamped (masks, bounds of a Clip). ``divides``: its elements
    are divided by, so that none may become zero; a lone scalar (an epsilon) may neither.
    """
    array = np.asarray(tensor.numpy())
    if array.size == 0:
        return ""
    finite = array[np.isfinite(array)]
    beyond = finite[np.abs(finite) > form.greatest]
    if beyond.size and not (saturate or (beyond <= MASKED).all()):
        worst = float(beyond[np.abs(beyond).argmax()])
        return f"constant {tensor.name} reaches {worst:.3g}, {form.name} ends at {form.greatest:g}"
    inside = finite[np.abs(finite) <= form.greatest]
    small = inside.astype(form.dtype.numpy()).astype(np.float32)
    if (divides or array.size == 1) and np.any((small == 0) & (inside != 0)):
        least = float(np.abs(inside[inside != 0]).min())
        return f"constant {tensor.name} holds {least:.3g}, which is 0 in {form.name}"
    changed = inside[small != inside]
    if form.exact < FP16.exact and changed.size and (inside == np.rint(inside)).all():
        worst = float(changed[0])
        return f"constant {tensor.name} holds the integer {worst:.0f}, which is none in {form.name}"
    wide = inside.astype(np.float64).ravel()
    norm, error = float(np.linalg.norm(wide)), float(np.linalg.norm(small.ravel() - wide))
    if norm > 0 and error > form.loss * norm:
        return f"constant {tensor.name} would lose {error / norm:.1%} of its norm in {form.name}"
    return ""


def half(tensor: ir.TensorProtocol, name: str, *, bounds: bool = False, form: Format = FP16) -> ir.LazyTensor:
    """``tensor`` as ``form``, converted when read and not kept in memory.

    Masks become the format's; with ``bounds`` (of a Clip) what is out of range becomes the nearest
    finite value.
    """

    def convert() -> ir.TensorProtocol:
        array = _saturated(np.asarray(tensor.numpy()), bounds, form)
        return ir.Tensor(array, dtype=form.dtype, name=name)

    return ir.LazyTensor(convert, form.dtype, ir.Shape(tensor.shape.numpy()), name=name)


def rounded(tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
    """``tensor`` as float32 numbers that are float16 ones too, rounded when read and not kept in memory."""
    narrow = half(tensor, name)

    def widen() -> ir.TensorProtocol:
        return ir.Tensor(np.asarray(narrow.numpy(), np.float32), name=name)

    return ir.LazyTensor(widen, ir.DataType.FLOAT, ir.Shape(tensor.shape.numpy()), name=name)


def is_exact(array: Array, form: Format) -> bool:
    """Whether every element of a float32 array is a number of ``form``; a few are tried first."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return all(_exact(part, form) for part in (flat[:4096], flat))


def _exact(part: Array, form: Format) -> bool:
    if form is BF16:
        return not (part.view(np.uint32) & 0xFFFF).any()
    with np.errstate(over="ignore"):
        return np.array_equal(part.astype(form.dtype.numpy()).astype(np.float32), part)


def _saturated(array: Array, bounds: bool, form: Format) -> Array:
    wide = np.abs(array) > form.greatest
    if wide.any():
        finite = wide & np.isfinite(array)
        array = np.where(
            finite, np.clip(array, -form.greatest if bounds else form.mask, form.greatest), array
        )
    return np.asarray(array.astype(form.dtype.numpy()))
