"""How many tokens each row holds, in the words of ONNX Runtime's GroupQueryAttention, for CPU and CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....compiler.ir.rewrite import Rewriter
from ..views import shape_constant

LONG, SHORT = ir.DataType.INT64, ir.DataType.INT32


@dataclass(frozen=True, slots=True)
class Lengths:
    """All int32. ``last``: [batch], each row's length after the call minus one. ``total``: one number, the
    greatest length, or a bound of it. ``new``: [batch], each row's new tokens; None where all count.
    """

    last: ir.Value
    total: ir.Value
    new: ir.Value | None


def counted(at: Rewriter, part: ir.Value | None, lengths: ir.Value) -> Lengths:
    """For the CPU: the exact total, and the new tokens of each row, so that several rows may take several.

    ``part``: [batch, tokens, hidden], where the number of tokens is taken from.
    """
    batch = list(lengths.shape or [None])
    count = _made(at.op("Shape", part, start=1, end=2), LONG, [1])
    after = _made(at.op("Add", lengths, count), LONG, batch)
    last = _made(at.op("Sub", after, shape_constant(at, [1])), LONG, batch)
    most = _made(at.op("ReduceMax", after, keepdims=0), LONG, [])
    rows = _made(at.op("Shape", lengths), LONG, [1])
    spread = _made(at.op("Expand", count, rows), LONG, batch)
    return Lengths(_short(at, last), _short(at, most), _short(at, spread))


def at_capacity(
    at: Rewriter, part: ir.Value | None, lengths: ir.Value, past: ir.Value, context: int | None
) -> Lengths:
    """For CUDA: the capacity of ``past`` (at most ``context``, what rotations are stored for) is the total.

    The kernel reads the total on the host, where the capacity is known without waiting for the device, and
    stays the same from step to step, as CUDA graphs want it. It takes a call of several rows of several
    tokens for prompts of empty rows, and only if the total is the number of tokens: then they fill the
    cache, which no rows that hold something do. Any other such call it refuses.
    """
    batch = list(lengths.shape or [None])
    count = _made(at.op("Shape", part, start=1, end=2), LONG, [1])
    end = _made(at.op("Squeeze", count), LONG, [])
    one = at.const(np.asarray(1, np.int64), "step_1")
    begin = _made(at.op("Sub", end, one), LONG, [])
    # Range reads the host's numbers and writes the device's: no copy between, which a graph can't have.
    before = _made(at.op("Range", begin, end, one), LONG, [1])
    last = _made(at.op("Add", lengths, before), LONG, batch)
    total = _made(at.op("Shape", past, start=2, end=3), LONG, [1])
    if context is not None:
        total = _made(at.op("Min", total, shape_constant(at, [context])), LONG, [1])
    return Lengths(_short(at, last), _short(at, total), None)


def _short(at: Rewriter, value: ir.Value) -> ir.Value:
    return _made(at.op("Cast", value, to=SHORT), SHORT, list(value.shape or []))


def _made(value: ir.Value, kind: ir.DataType, shape: Sequence[int | ir.SymbolicDim | None]) -> ir.Value:
    value.type, value.shape = ir.TensorType(kind), ir.Shape(shape)
    return value
