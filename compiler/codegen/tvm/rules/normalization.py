"""Softmax and the normalizations, computed in float32 at least."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import onnx_ir as ir

from ..kernels import norms
from ..kernels.kernel import Kernel
from ..lowering import Lowering, Rule, given, normalized
from . import functions as f
from .broadcast import read
from .elementwise import HALF, mapped


def wider(dtype: str) -> str:
    """What a normalization is computed in."""
    return "float32" if dtype in HALF else dtype


def softmax(b: Lowering, source: Any, axis: int, log: bool = False, empty: bool = False) -> Any:
    """The softmax, or its logarithm, along an axis. ``empty``: 0 where all is minus infinity, not NaN."""

    def normalize(x: Any) -> Any:
        dtype = wider(x.dtype)
        rest = [d for i, d in enumerate(x.shape) if i != axis]
        k, m = (b.te.reduce_axis((0, x.shape[axis]), name) for name in "km")

        def at(i: Any, where: Any) -> Any:
            return b.cast(x(*i[:axis], where, *i[axis:]), dtype)

        highest = b.te.compute(rest, lambda *i: b.te.max(at(i, k), axis=k), name="highest")
        least = b.tirx.min_value(dtype)
        top = b.te.compute(rest, lambda *i: b.tirx.max(highest(*i), least), name="top") if empty else highest
        powers = b.te.compute(
            x.shape,
            lambda *i: f.exp(b, b.cast(x(*i), dtype) - top(*i[:axis], *i[axis + 1 :])),
            name="powers",
        )
        total = b.te.compute(rest, lambda *i: b.te.sum(powers(*i[:axis], m, *i[axis:]), axis=m), name="total")

        def element(*i: Any) -> Any:
            outer = (*i[:axis], *i[axis + 1 :])
            if log:
                value = b.cast(x(*i), dtype) - top(*outer) - b.tirx.log(total(*outer))
            else:
                sum_of = total(*outer)
                zero = b.const(0, dtype)
                divisor = b.tirx.Select(sum_of == zero, b.const(1, dtype), sum_of) if empty else sum_of
                value = powers(*i) / divisor
            return value.astype(x.dtype)

        return b.te.compute(x.shape, element, name="softmax")

    return b.compute(normalize, source, name="log_softmax" if log else "softmax")


def _softmax(log: bool) -> Rule:
    def lower(b: Lowering, node: ir.Node) -> Any:
        source = b.value(node.inputs[0])
        return softmax(b, source, normalized(node.attributes.get_int("axis", -1), len(b.shape(source))), log)

    return Rule(lower)


def _layer_norm(b: Lowering, node: ir.Node) -> Any:
    source, others = b.value(node.inputs[0]), [v for v in node.inputs[1:3] if v is not None]
    first = normalized(node.attributes.get_int("axis", -1), len(b.shape(source)))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    wants = len([o for o in node.outputs if o.uses() or o.is_graph_output()]) > 1
    if not wants and _goes_by_rows(b, source, first, others):
        kernel = partial(norms.layer_norm, epsilon=epsilon, bias=len(others) > 1)
        return _by_rows(b, source, others, kernel)
    return moments(b, source, [b.value(v) for v in others], first, epsilon, mean=True, statistics=wants)


def _rms_norm(b: Lowering, node: ir.Node) -> Any:
    source, scale = b.value(node.inputs[0]), given(node, 1)
    first = normalized(node.attributes.get_int("axis", -1), len(b.shape(source)))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if scale is not None and _goes_by_rows(b, source, first, [scale]):
        return _by_rows(b, source, [scale], partial(norms.rms_norm, epsilon=epsilon))
    return moments(b, source, [] if scale is None else [b.value(scale)], first, epsilon, mean=False)


def _goes_by_rows(b: Lowering, source: Any, axis: int, affine: Sequence[ir.Value]) -> bool:
    """Whether a kernel of ours takes it: float32, the last axis, whose size is known."""
    *lead, columns = b.shape(source)
    if b.cpu is None or axis != len(lead) or source.ty.dtype != "float32" or not isinstance(columns, int):
        return False
    return all(v.dtype == ir.DataType.FLOAT and b.shape(b.value(v)) == [columns] for v in affine)


def _by_rows(b: Lowering, source: Any, affine: Sequence[ir.Value], kernel: Callable[..., Kernel]) -> Any:
    """What a kernel over rows gives. ``kernel(rows, columns, cpu)``: rows are None if only running tells."""
    *lead, columns = shape = b.shape(source)
    rows: Any = math.prod(lead)
    made = kernel(rows if isinstance(rows, int) else None, columns, b.cpu)
    flat = (
        source if len(lead) == 1 else b.emit(b.relax.op.reshape(source, b.relax.ShapeExpr([rows, columns])))
    )
    found = b.call(made.function, [flat, *map(b.value, affine)], [rows, columns], "float32")
    return found if len(lead) == 1 else b.emit(b.relax.op.reshape(found, b.relax.ShapeExpr(shape)))


def moments(
    b: Lowering,
    source: Any,
    affine: list[Any],
    first: int,
    epsilon: float,
    *,
    mean: bool,
    statistics: bool = False,
) -> Any:
    """The axes from ``first`` on brought to variance 1, with ``mean`` to mean 0 too, then scaled and moved.

    ``affine``: scale and bias, which broadcast. ``statistics``: also gives the means and inverse deviations.
    """

    def normalize(x: Any, *parameters: Any) -> Any:
        dtype = wider(x.dtype)
        lead, inner = list(x.shape[:first]), list(x.shape[first:])
        count = inner[0]
        for d in inner[1:]:
            count = count * d
        total = count.astype(dtype)

        def summed(function: Callable[..., Any], name: str) -> Any:
            axes = [b.te.reduce_axis((0, d), f"{name}_{p}") for p, d in enumerate(inner)]
            return b.te.compute(
                lead, lambda *i: b.te.sum(function(i, b.cast(x(*i, *axes), dtype)), axis=axes), name=name
            )

        center = summed(lambda i, v: v, "sums") if mean else None

        def away(i: Any, v: Any) -> Any:
            return v if center is None else v - center(*i) / total

        squares = summed(lambda i, v: away(i, v) * away(i, v), "squares")

        def scale_of(*i: Any) -> Any:
            return b.const(1, dtype) / b.tirx.sqrt(squares(*i) / total + b.const(epsilon, dtype))

        scales = b.te.compute(lead, scale_of, name="scales")

        def element(*i: Any) -> Any:
            value = away(i[:first], b.cast(x(*i), dtype)) * scales(*i[:first])
            for number, parameter in enumerate(parameters):
                other = b.cast(read(b, parameter, i, x.shape), dtype)
                value = value + other if number else value * other
            return value.astype(x.dtype)

        found = b.te.compute(x.shape, element, name="normalized")
        if not statistics or center is None:
            return found
        kept = [*lead, *([1] * len(inner))]
        means = b.te.compute(kept, lambda *i: center(*i[:first]) / total, name="means")
        return [found, means, b.te.compute(kept, lambda *i: scales(*i[:first]), name="inverse")]

    found = b.compute(normalize, source, *affine, name="layer_norm" if mean else "rms_norm")
    if not statistics:
        return found
    return [b.emit(b.relax.TupleGetItem(found, i)) for i in range(3)]


def _batch_norm(b: Lowering, node: ir.Node) -> Any:
    epsilon = node.attributes.get_float("epsilon", 1e-5)

    def batch_norm(x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        dtype = wider(x.dtype)

        def element(*i: Any) -> Any:
            c = i[1] if len(i) > 1 else 0
            s, o, m, v = (b.cast(t(c), dtype) for t in (scale, bias, mean, variance))
            factor = s / b.tirx.sqrt(v + b.const(epsilon, dtype))
            return ((b.cast(x(*i), dtype) - m) * factor + o).astype(x.dtype)

        return b.te.compute(x.shape, element, name="batch_norm")

    return b.compute(batch_norm, *b.values(node))


def _infers(node: ir.Node) -> str | None:
    return "it is in training mode" if node.attributes.get_int("training_mode", 0) else None


def _instance_norm(b: Lowering, node: ir.Node) -> Any:
    source, scale, bias = b.values(node)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    found = moments(b, source, [], 2, epsilon, mean=True)
    return mapped_channels(b, found, scale, bias)


def mapped_channels(b: Lowering, source: Any, scale: Any, bias: Any) -> Any:
    """Scaled and moved channel by channel, [batch, channels, ...]."""

    def affine(x: Any, s: Any, o: Any) -> Any:
        return b.te.compute(x.shape, lambda *i: x(*i) * s(i[1]) + o(i[1]), name="affine")

    return b.compute(affine, source, scale, bias)


def _group_norm(b: Lowering, node: ir.Node) -> Any:
    source, scale, bias = b.values(node)
    shape, groups = b.shape(source), node.attributes.get_int("num_groups", 1)
    cut = b.emit(
        b.relax.op.reshape(source, b.relax.ShapeExpr([shape[0], groups, shape[1] // groups, *shape[2:]]))
    )
    found = moments(b, cut, [], 2, node.attributes.get_float("epsilon", 1e-5), mean=True)
    return mapped_channels(b, b.emit(b.relax.op.reshape(found, b.relax.ShapeExpr(shape))), scale, bias)


def _lp_norm(b: Lowering, node: ir.Node) -> Any:
    source = b.value(node.inputs[0])
    axis, p = (
        normalized(node.attributes.get_int("axis", -1), len(b.shape(source))),
        node.attributes.get_int("p", 2),
    )
    powers = mapped(b, lambda x: b.tirx.abs(x) if p == 1 else x * x, [source], "powers")
    total = b.compute(lambda x: b.topi.sum(x, axis=[axis], keepdims=True), powers, name="sum")

    def divided(x: Any, t: Any) -> Any:
        size = t if p == 1 else b.tirx.sqrt(t)
        zero = b.const(0, x.ty.dtype)
        return b.tirx.Select(size == zero, zero, x / size)

    return mapped(b, divided, [source, total], "lp_norm")


RULES: dict[str, Rule] = {
    "Softmax": _softmax(log=False),
    "LogSoftmax": _softmax(log=True),
    "LayerNormalization": Rule(_layer_norm),
    "RMSNormalization": Rule(_rms_norm),
    "BatchNormalization": Rule(_batch_norm, _infers),
    "InstanceNormalization": Rule(_instance_norm),
    "GroupNormalization": Rule(_group_norm),
    "LpNormalization": Rule(_lp_norm),
}
