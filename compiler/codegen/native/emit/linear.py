"""Emitting Linear: a specialised function for each shape and format, called for every layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import onnx_ir as ir

from ....dialect.linear import ACTIVATIONS
from ..pack import TILE, PackedWeight
from ..views import rows_of
from .base import Entry, Operator, Size, View, bare
from .views import input_of, required

NORMS = {"": "NORM_NONE", "rms": "NORM_RMS", "layer": "NORM_LAYER"}
_ACTIVATIONS = {name: f"ACT_{name.upper() or 'NONE'}" for name in ACTIVATIONS}
_PARTS = ((4, 5), (6, 7), (8, 9))


def c_float(value: float) -> str:
    """A finite float constant in C.

    >>> c_float(1), c_float(1e-5)
    ('1.0f', '1e-05f')
    """
    return f"{float(value)!r}f"


def rows(value: ir.Value, entry: Entry) -> tuple[View, Size, Size]:
    """A value as rows of contiguous floats, copied if it does not lie so: view, count and stride."""
    view = entry.view(value)
    found = rows_of(view)
    if found is None:
        view = entry.contiguous(value)
        found = rows_of(view)
    assert found is not None
    return view, *found


@dataclass(frozen=True, slots=True)
class _Part:
    """Weights (gate and up of a gated layer) that are one part of a kernel's call, and their biases."""

    weights: tuple[tuple[ir.Value, ...], ...]
    biases: tuple[ir.Value | None, ...]
    form: PackedWeight

    @property
    def is_integer(self) -> bool:
        """Whether its kernel multiplies integers: a call has parts of one kind."""
        return self.form.format.startswith("WEIGHT_INT")

    def joined(self, other: _Part) -> _Part | None:
        """Both as one part: of the same packing, in whole tiles, with biases both or neither."""
        mine, theirs = self.form, other.form
        kinds = {b is None for b in (*self.biases, *other.biases)}
        same = (mine.format, mine.group) == (theirs.format, theirs.group)
        if not same or not mine.tiled or mine.rows % TILE or len(kinds) > 1 or len(self.weights[0]) > 1:
            return None
        form = replace(mine, rows=mine.rows + theirs.rows)
        return _Part(self.weights + other.weights, self.biases + other.biases, form)


def _parts(node: ir.Node, entry: Entry) -> list[_Part]:
    """The parts of a Linear, as few as its weights' packings allow."""
    layers = [(w, input_of(node, b)) for i, b in _PARTS if (w := input_of(node, i)) is not None]
    if node.attributes.get_int("gated", 0):
        pair = tuple(w for w, _ in layers)
        return [_Part((pair,), tuple(b for _, b in layers), entry.packing(pair))]
    parts: list[_Part] = []
    for weight, bias in layers:
        part = _Part(((weight,),), (bias,), entry.packing((weight,)))
        whole = parts[-1].joined(part) if parts else None
        parts[-1:] = [*parts[-1:], part] if whole is None else [whole]
    return parts


def _linear(node: ir.Node, entry: Entry) -> None:
    parts = _parts(node, entry)
    width = sum(part.form.rows for part in parts)
    x, count, x_stride = rows(required(node, 0), entry)
    residual, output = input_of(node, 3), node.outputs[0]
    fields = [f".count = {bare(count)}", f".x = {bare(x.pointer)}", f".x_stride = {bare(x_stride)}"]
    old, old_stride = None, None
    if residual is not None:
        old, _, old_stride = rows(residual, entry)
    in_place = residual is not None and old is not None and old.pointer != x.pointer
    y = entry.over(output, residual) if residual is not None and in_place else entry.new(output)
    for name, index in (("norm_scale", 1), ("norm_bias", 2)):
        value = input_of(node, index)
        if value is not None:
            fields.append(f".{name} = {entry.contiguous(value).pointer}")
    begin = 0
    for _, group in groupby(parts, key=lambda part: part.is_integer):
        call = list(group)
        behind = f" + {begin}" if begin else ""
        made = [*fields, f".y = {bare(y.pointer)}{behind}", f".y_stride = {width}"]
        if old is not None:
            made += [
                f".residual = {bare(old.pointer)}{behind}",
                f".residual_stride = {bare(old_stride or 0)}",
            ]
        _call(node, entry, call, made, count)
        begin += sum(part.form.rows for part in call)


def _call(node: ir.Node, entry: Entry, parts: list[_Part], fields: list[str], count: Size) -> None:
    """One call of the kernel; a Linear whose weights are integers and floats takes two."""
    attributes = node.attributes
    packed = [entry.packed(part.weights) for part in parts]
    fields.append(f".weight = {{{', '.join(where for where, _ in packed)}}}")
    gated = attributes.get_int("gated", 0)
    if gated:
        biases = ["NULL" if b is None else entry.contiguous(b).pointer for b in parts[0].biases]
    else:
        given = ([b for b in part.biases if b is not None] for part in parts)
        biases = [entry.constants_beside(values).pointer if values else "NULL" for values in given]
    if any(b != "NULL" for b in biases):
        fields.append(f".bias = {{{', '.join(biases)}}}")
    norm, act = attributes.get_string("norm", ""), attributes.get_string("activation", "")
    columns, width = parts[0].form.columns, sum(part.form.rows for part in parts)
    spec = [f".columns = {columns}"]
    if norm:
        spec += [f".norm = {NORMS[norm]}", f".epsilon = {c_float(attributes.get_float('epsilon', 1e-5))}"]
    if act:
        spec.append(f".act = {_ACTIVATIONS[act]}")
    if gated:
        spec.append(".gated = 1")
    formats = ", ".join(f"{{{part.form.rows}, {part.form.format}, {part.form.group}}}" for part in parts)
    spec += [f".parts = {len(parts)}", f".part = {{{formats}}}"]
    function = entry.function(
        "_".join(filter(None, ["linear", f"{width}x{columns}", norm, "gated" * gated, act])),
        f"static const linear_spec NAME_spec = {{\n    {', '.join(spec)},\n}};\n\n"
        "static void NAME(worker *w, const linear_args *args)\n{\n    linear(w, &NAME_spec, args);\n}\n",
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
    residual = input_of(node, 3)
    if residual is not None and residual.shape != node.outputs[0].shape:
        return "its residual is of another shape"
    return None


OPERATORS = {"miaotui::Linear": Operator(_linear, _reason)}
