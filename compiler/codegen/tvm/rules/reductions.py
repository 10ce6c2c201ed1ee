"""Operators that reduce axes: sums, extremes, norms, the places of extremes, running sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from .. import reducers
from ..lowering import Lowering, Rule, given, normalized
from . import functions as f
from .elementwise import HALF, mapped
from .integers import unknown_integers
from .views import axes_of

Reduce = Callable[[Lowering, Any, list[int], bool], Any]


def wide(b: Lowering, source: Any) -> tuple[Any, str]:
    """The source in the dtype that it is summed in, and its own."""
    dtype = str(source.ty.dtype)
    if dtype not in HALF:
        return source, dtype
    return mapped(b, lambda x: b.cast(x, "float32"), [source], "widen"), dtype


def narrow(b: Lowering, source: Any, dtype: str) -> Any:
    """Back to the dtype it had."""
    if source.ty.dtype == dtype:
        return source
    return mapped(b, lambda x: x.astype(dtype), [source], "narrow")


def reduced(b: Lowering, source: Any, axes: list[int], keep: bool, kind: str) -> Any:
    """``sum``, ``max``, ``min`` or ``prod`` along axes."""
    if kind in ("max", "min"):
        return b.compute(lambda x: extreme_along(b, x, axes, keep, kind), source, name=kind)
    return b.compute(lambda x: getattr(b.topi, kind)(x, axis=axes, keepdims=keep), source, name=kind)


def extreme_along(b: Lowering, x: Any, axes: list[int], keep: bool, kind: str) -> Any:
    """The greatest or least elements along axes, as a tensor expression."""
    reducer = reducers.extreme(b.te, kind, b.cpu is None)
    inner = {axis: b.te.reduce_axis((0, x.shape[axis]), f"k{axis}") for axis in axes}
    shape = [1 if i in inner else d for i, d in enumerate(x.shape) if keep or i not in inner]

    def element(*i: Any) -> Any:
        rest = iter(p for a, p in enumerate(i) if a not in inner) if keep else iter(i)
        return reducer(
            x(*(inner[a] if a in inner else next(rest) for a in range(len(x.shape)))), axis=[*inner.values()]
        )

    return b.te.compute(shape, element, name=kind)


def counted(b: Lowering, source: Any, axes: list[int]) -> Any:
    """How many elements a reduction puts together."""
    return math.prod(b.shape(source)[a] for a in axes)


def scaled_by(b: Lowering, source: Any, count: Any) -> Any:
    """Divided by a count, which may be a size."""
    dtype = str(source.ty.dtype)

    def mean(x: Any, n: Any) -> Any:
        number = b.tirx.const(n, dtype) if isinstance(n, int) else n.astype(dtype)
        whole = dtype.startswith(("int", "uint"))
        return b.te.compute(
            x.shape, lambda *i: b.tirx.truncdiv(x(*i), number) if whole else x(*i) / number, name="mean"
        )

    return b.compute(mean, source, count if isinstance(count, int) else b.prims([count])[0])


def _mean(b: Lowering, x: Any, axes: list[int], keep: bool) -> Any:
    return scaled_by(b, reduced(b, x, axes, keep, "sum"), counted(b, x, axes))


def _of_squares(b: Lowering, x: Any, axes: list[int], keep: bool) -> Any:
    return reduced(b, mapped(b, lambda v: v * v, [x], "square"), axes, keep, "sum")


def _norm2(b: Lowering, x: Any, axes: list[int], keep: bool) -> Any:
    return mapped(b, lambda v: _through_float(b, v, b.tirx.sqrt), [_of_squares(b, x, axes, keep)], "sqrt")


def _through_float(b: Lowering, x: Any, function: Callable[[Any], Any]) -> Any:
    dtype = str(x.ty.dtype)
    return function(x) if dtype.startswith("float") else function(x.astype("float64")).astype(dtype)


def _norm1(b: Lowering, x: Any, axes: list[int], keep: bool) -> Any:
    return reduced(b, mapped(b, b.tirx.abs, [x], "abs"), axes, keep, "sum")


def _log_sum(b: Lowering, x: Any, axes: list[int], keep: bool) -> Any:
    return mapped(b, lambda v: _through_float(b, v, b.tirx.log), [reduced(b, x, axes, keep, "sum")], "log")


def _log_sum_exp(b: Lowering, x: Any, axes: list[int], keep: bool) -> Any:
    top = reduced(b, x, axes, True, "max")
    top = mapped(b, lambda t: b.tirx.Select(b.tirx.isfinite(t), t, b.const(0, t.ty.dtype)), [top], "finite")
    shifted = mapped(b, lambda v, t: f.exp(b, v - t), [x, top], "exp")
    total = mapped(b, b.tirx.log, [reduced(b, shifted, axes, True, "sum")], "log")
    found = mapped(b, lambda v, t: v + t, [total, top], "add")
    if keep:
        return found
    return b.emit(b.relax.op.squeeze(found, axes))


def _plain(kind: str) -> Reduce:
    return lambda b, x, axes, keep: reduced(b, x, axes, keep, kind)


def _rule(reduce: Reduce) -> Rule:
    def lower(b: Lowering, node: ir.Node) -> Any:
        source, dtype = wide(b, b.value(node.inputs[0]))
        rank, axes = len(b.shape(source)), axes_of(b, node)
        if not axes and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
            return b.value(node.inputs[0])
        axes = [normalized(a, rank) for a in axes] if axes else list(range(rank))
        if not axes:
            return b.value(node.inputs[0])
        if source.ty.dtype == "bool":
            source, dtype = mapped(b, lambda x: x.astype("int8"), [source], "cast"), "bool"
        keep = bool(node.attributes.get_int("keepdims", 1))
        return narrow(b, reduce(b, source, sorted(axes), keep), dtype)

    return Rule(lower, unknown_integers(1))


def _place(kind: str) -> Rule:
    def lower(b: Lowering, node: ir.Node) -> Any:
        source, _ = wide(b, b.value(node.inputs[0]))
        axis = normalized(node.attributes.get_int("axis", 0), len(b.shape(source)))
        keep, last = (
            bool(node.attributes.get_int(name, d)) for name, d in (("keepdims", 1), ("select_last_index", 0))
        )
        return b.compute(lambda x: place_of(b, x, axis, keep, last, kind), source, name=kind)

    return Rule(lower)


def place_of(b: Lowering, x: Any, axis: int, keep: bool, last: bool, kind: str) -> Any:
    """The index of the greatest or least element along an axis, int64; of equal ones first or last."""
    reducer = reducers.place(b.te, kind, last, b.cpu is None)
    k = b.te.reduce_axis((0, x.shape[axis]), "k")
    shape = [d for i, d in enumerate(x.shape) if i != axis]
    if keep:
        shape.insert(axis, 1)

    def element(*i: Any) -> Any:
        rest = [*i[:axis], k, *i[axis + (1 if keep else 0) :]]
        return reducer((k.astype("int64"), x(*rest)), axis=k)

    found = b.te.compute(shape, element, name=kind)
    return b.te.compute(shape, lambda *i: found[0](*i), name="place")


def _cumsum(b: Lowering, node: ir.Node) -> Any:
    source, axis = b.value(node.inputs[0]), int((b.ints(node.inputs[1]) or [0])[0])
    axis = normalized(axis, len(b.shape(source)))
    exclusive, reverse = (bool(node.attributes.get_int(name, 0)) for name in ("exclusive", "reverse"))

    def running(x: Any) -> Any:
        size = x.shape[axis]
        k = b.te.reduce_axis((0, size), "k")

        def element(*i: Any) -> Any:
            at = i[axis]
            before = (k > at if exclusive else k >= at) if reverse else (k < at if exclusive else k <= at)
            value = x(*i[:axis], k, *i[axis + 1 :])
            return b.te.sum(b.tirx.Select(before, value, b.const(0, x.dtype)), axis=k)

        return b.te.compute(x.shape, element, name="cumsum")

    return b.compute(running, source, name="cumsum")


def _needs_axis(node: ir.Node) -> str | None:
    return unknown_integers(1)(node) if given(node, 1) is not None else "it names no axis"


RULES: dict[str, Rule] = {
    "ReduceSum": _rule(_plain("sum")),
    "ReduceMax": _rule(_plain("max")),
    "ReduceMin": _rule(_plain("min")),
    "ReduceProd": _rule(_plain("prod")),
    "ReduceMean": _rule(_mean),
    "ReduceL1": _rule(_norm1),
    "ReduceL2": _rule(_norm2),
    "ReduceSumSquare": _rule(_of_squares),
    "ReduceLogSum": _rule(_log_sum),
    "ReduceLogSumExp": _rule(_log_sum_exp),
    "ArgMax": _place("argmax"),
    "ArgMin": _place("argmin"),
    "CumSum": Rule(_cumsum, _needs_axis),
}
