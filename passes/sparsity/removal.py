"""Units removed for good: everything that holds them made smaller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor
from ...compiler.ir.provenance import add_passes
from ...compiler.ir.rewrite import Rewriter
from ...compiler.reference import Array
from ..moments import LazyMoments, Moment, Moments
from .choice import Choice
from .flow import Flow
from .site import Site

Cuts: TypeAlias = dict[tuple[object, ...], tuple[ir.TensorProtocol, ir.TensorProtocol]]
"""Tensors and what they were cut to, by what identifies that: entries go on sharing them."""


Cut: TypeAlias = "tuple[tuple[object, ...], Callable[[], ir.TensorProtocol]]"
"""What identifies a smaller tensor, and what makes it."""


def remove(site: Site, choice: Choice, step: str, cuts: Cuts) -> None:
    """Make everything smaller that holds units of ``site``, for the pass ``step``."""
    site.flow.kept = choice.kept

    def reader(value: ir.Value, tensor: ir.TensorProtocol, axes: Mapping[int, Array]) -> Cut | None:
        if value is not site.weight:
            return None
        return (id(tensor), id(choice)), partial(_cut_reader, tensor, choice, site)

    shrink(site.flow, step, cuts, reader)


def shrink(
    flow: Flow,
    step: str,
    cuts: Cuts,
    own: Callable[[ir.Value, ir.TensorProtocol, Mapping[int, Array]], Cut | None],
) -> None:
    """Make everything on ``flow`` smaller for the pass ``step``, once ``kept`` is chosen.

    ``own``: how a constant with units along its axes is cut otherwise than by leaving out what goes.
    """
    for node in flow.nodes:
        rule = flow.rules[node.op_type]
        if rule.cut is not None:
            rule.cut(node, flow, Rewriter(node))
    for key, axes in flow.axes.items():
        if isinstance(key, ir.Value):
            _resize(key, axes, flow)
            continue
        node, slot = key
        value = node.inputs[slot]
        tensor = constant_tensor(value)
        assert value is not None and tensor is not None
        kept = {axis: flow.keeps(units) for axis, units in axes.items()}
        plain = (id(tensor), *((axis, at.tobytes()) for axis, at in kept.items()))
        name, cut = own(value, tensor, axes) or (plain, partial(_cut_tensor, tensor, kept))
        if name not in cuts:
            cuts[name] = tensor, cut()
        made = cuts[name][1]
        if value.is_initializer() and len(value.uses()) == 1:
            value.const_value = made  # smaller, the same name
            _resize(value, axes, flow)
        else:
            node.replace_input_with(slot, Rewriter(node).const(made, str(value.name)))
    for node in (*flow.consumers, *flow.producers):
        add_passes(node, [step])


def _resize(value: ir.Value, axes: Mapping[int, Array], flow: Flow) -> None:
    assert value.shape is not None
    shape = value.shape.copy()
    for axis, units in axes.items():
        shape[axis] = len(flow.keeps(units))
    value.shape = shape


def _cut_tensor(tensor: ir.TensorProtocol, kept: Mapping[int, Array]) -> ir.TensorProtocol:
    shape = list(tensor.shape.numpy())
    for axis, at in kept.items():
        shape[axis] = len(at)

    def made() -> ir.TensorProtocol:
        array = tensor.numpy()
        for axis, at in kept.items():
            array = np.take(array, at, axis)
        return ir.Tensor(array, dtype=tensor.dtype)

    return ir.LazyTensor(made, dtype=tensor.dtype, shape=ir.Shape(shape), name=tensor.name)


def _cut_reader(tensor: ir.TensorProtocol, choice: Choice, site: Site) -> ir.TensorProtocol:
    shape = list(tensor.shape.numpy())
    axis = 1 if len(shape) > 2 or not site.turned else 0
    if choice.matrix is None:
        return _held(_cut_tensor(tensor, {axis: choice.columns}), choice)
    shape[axis] = len(choice.columns)
    turned = site.turned

    def made() -> ir.TensorProtocol:
        array = tensor.numpy()
        cut = choice.cut(array.T if turned else array)
        return ir.Tensor(np.ascontiguousarray(cut.T if turned else cut))

    return ir.LazyTensor(made, dtype=tensor.dtype, shape=ir.Shape(shape), name=tensor.name)


def _held(tensor: ir.TensorProtocol, choice: Choice) -> ir.TensorProtocol:
    """``tensor``, and with it ``choice``, for as long as a program has it."""
    return ir.LazyTensor(
        lambda: (choice, ir.Tensor(tensor.numpy(), dtype=tensor.dtype))[1],
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def moments_left(moments: Moments | None, cuts: Mapping[str, Array]) -> Moments:
    """Moments of the activations whose channels were cut: those of what is left."""
    known = moments or {}

    def cut(name: str, at: Array) -> Moment:
        whole = known[name]
        return Moment(np.ascontiguousarray(whole.matrix[np.ix_(at, at)]), whole.rows)

    return LazyMoments({name: partial(cut, name, at) for name, at in cuts.items() if name in known})
