"""Emitting Linear: a specialised function for each shape and format, called for every layer."""

from __future__ import annotations

import onnx_ir as ir

from ....dialect.linear import ACTIVATIONS
from ..views import rows_of
from .base import Entry, Operator, Size, View, bare
from .views import input_of, required

NORMS = {"": "NORM_NONE", "rms": "NORM_RMS", "layer": "NORM_LAYER"}
_ACTIVATIONS = {name: f"ACT_{name.upper() or 'NONE'}" for name in ACTIVATIONS}
_PARTS = ((4, 5), (6, 7), (8, 9))


def c_float(value: float) -> str:
    """A float constant in C.

    >>> c_float(1), c_float(1e-5)
    ('1.0f', '1e-05f')
    """
    return f"{value!r}f" if "inf" not in repr(float(value)) else "INFINITY"


def rows(value: ir.Value, entry: Entry) -> tuple[View, Size, Size]:
    """A value as rows of contiguous floats, copied if it does not lie so: view, count and stride."""
    view = entry.view(value)
    found = rows_of(view)
    if found is None:
        view = entry.contiguous(value)
        found = rows_of(view)
    assert found is not None
    return view, *found


def _linear(node: ir.Node, entry: Entry) -> None:
    attributes = node.attributes
    gated = attributes.get_int("gated", 0)
    layers = [(w, input_of(node, b)) for i, b in _PARTS if (w := input_of(node, i)) is not None]
    groups = [[w for w, _ in layers]] if gated else [[w] for w, _ in layers]
    parts = [entry.packed(group) for group in groups]
    packed = [weight for _, weight in parts]
    width = sum(p.rows for p in packed)
    norm, act = attributes.get_string("norm", ""), attributes.get_string("activation", "")
    columns = packed[0].columns

    x, count, x_stride = rows(required(node, 0), entry)
    residual = input_of(node, 3)
    fields = [f".count = {bare(count)}", f".x = {bare(x.pointer)}", f".x_stride = {bare(x_stride)}"]
    if residual is not None:
        old, _, stride = rows(residual, entry)
        fields += [f".residual = {bare(old.pointer)}", f".residual_stride = {bare(stride)}"]
        y = entry.over(node.outputs[0], residual) if old.pointer != x.pointer else entry.new(node.outputs[0])
    else:
        y = entry.new(node.outputs[0])
    fields += [f".y = {y.pointer}", f".y_stride = {width}"]
    for name, index in (("norm_scale", 1), ("norm_bias", 2)):
        value = input_of(node, index)
        if value is not None:
            fields.append(f".{name} = {entry.contiguous(value).pointer}")
    fields.append(f".weight = {{{', '.join(where for where, _ in parts)}}}")
    biases = ["NULL" if b is None else entry.contiguous(b).pointer for _, b in layers]
    if any(b != "NULL" for b in biases):
        fields.append(f".bias = {{{', '.join(biases)}}}")

    spec = [f".columns = {columns}"]
    if norm:
        spec += [f".norm = {NORMS[norm]}", f".epsilon = {c_float(attributes.get_float('epsilon', 1e-5))}"]
    if act:
        spec.append(f".act = {_ACTIVATIONS[act]}")
    if gated:
        spec.append(".gated = 1")
    formats = ", ".join(f"{{{p.rows}, {p.format}, {p.group}}}" for p in packed)
    spec += [f".parts = {len(packed)}", f".part = {{{formats}}}"]
    name = "_".join(filter(None, ["linear", f"{width}x{columns}", norm, "gated" * gated, act]))
    function = entry.function(
        name,
        f"static const linear_spec NAME_spec = {{\n    {', '.join(spec)},\n}};\n\n"
        "static void NAME(worker *w, const linear_args *args) { linear(w, &NAME_spec, args); }\n",
    )
    sized = f"(&{function}_spec, {bare(count)})"
    entry.scratch(f"linear_worker_bytes{sized}", f"linear_shared_bytes{sized}")
    entry.step(node, f"{function}(w, &(linear_args){{\n    {', '.join(fields)}}});")


def _reason(node: ir.Node) -> str | None:
    act = node.attributes.get_string("activation", "")
    if act not in _ACTIVATIONS:
        return f"activation {act!r} has no kernel"
    for index, _ in _PARTS:
        weight = input_of(node, index)
        if weight is not None and (weight.shape is None or not all(isinstance(d, int) for d in weight.shape)):
            return "the shape of its weight varies"
    return None


OPERATORS = {"miaotui::Linear": Operator(_linear, _reason)}
