"""Reductions that TVM has not, or not as ONNX means them: extremes of infinities, places of extremes.

TVM shares a reduction among the threads of a GPU only if it knows it again: those here are made known to it.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

from .versions import require_ffi


@cache
def extreme(te: Any, kind: str, on_gpu: bool) -> Any:
    """``max`` or ``min``; TVM's own take the least finite number for the greatest of infinities."""
    join, first = partial(_join, kind), least if kind == "max" else greatest
    if on_gpu:
        _known_to_tvm(
            1, lambda one, other: [join(one[0], other[0])], lambda values: [first(values[0].ty.dtype)]
        )
    return te.comm_reducer(lambda one, other: join(one, other), first, name=kind)


@cache
def place(te: Any, kind: str, last: bool, on_gpu: bool) -> Any:
    """``argmax`` or ``argmin`` of pairs (int64 place, value): of equal values the first, or the ``last``."""
    better = partial(_better, kind, last)

    def start(dtype: Any) -> Any:
        from tvm import tirx

        # behind or before every place, so that an element that is as bad is taken all the same
        worst = least(dtype) if kind == "argmax" else greatest(dtype)
        return tirx.const(-1 if last else 2**62, "int64"), worst

    if on_gpu:
        _known_to_tvm(2, better, lambda values: [*start(values[1].ty.dtype)])
    return te.comm_reducer(lambda one, other: tuple(better(one, other)), lambda _, v: start(v), name=kind)


def least(dtype: Any) -> Any:
    """What no number of a dtype is below."""
    from tvm import tirx

    floats = "float" in str(dtype)
    return tirx.const(-math.inf, str(dtype)) if floats else tirx.min_value(dtype)


def greatest(dtype: Any) -> Any:
    """What no number of a dtype is above."""
    from tvm import tirx

    floats = "float" in str(dtype)
    return tirx.const(math.inf, str(dtype)) if floats else tirx.max_value(dtype)


def _join(kind: str, one: Any, other: Any) -> Any:
    from tvm import tirx

    return tirx.max(one, other) if kind == "max" else tirx.min(one, other)


def _better(kind: str, last: bool, one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    from tvm import tirx

    ahead = one[1] > other[1] if kind == "argmax" else one[1] < other[1]
    first = one[0] > other[0] if last else one[0] < other[0]
    taken = tirx.Or(ahead, tirx.And(tirx.EQ(one[1], other[1]), first))
    return [tirx.Select(taken, p, q) for p, q in zip(one, other, strict=True)]


def _known_to_tvm(count: int, combine: Any, start: Any) -> None:
    ffi = require_ffi()
    functions = [ffi.convert(function) for function in (combine, start)]
    for function in functions:  # TVM lets go of them when the process ends, too late to free what is Python's
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(function))
    ffi.get_global_func("s_tir.schedule.RegisterReducer")(count, *functions)
