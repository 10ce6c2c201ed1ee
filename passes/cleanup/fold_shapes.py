"""Shape arithmetic: static sizes become constants, and a Reshape's target becomes numbers, 0 and one -1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Dim, Program, dim_of
from ...compiler.reference import Array
from ..base import Note, Pass, PassContext, PassResult
from .contents import Contents, Known
from .forward import forward, may_forward
from .propagate import is_named, propagate

_First: TypeAlias = dict[tuple[Known, ir.DataType], ir.Value]


@dataclass(frozen=True)
class FoldShapes(Pass):
    """Replace what is computed from static sizes by constants, and Reshape targets by 0 and -1 forms."""

    name: ClassVar[str] = "fold-shapes"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Follow sizes through every graph in order, outer graphs first."""
        hits: list[Note] = []
        for model in program.entries.values():
            nonzero = {
                d.value
                for v in model.graph.inputs
                for d in v.shape or ()
                if isinstance(d, ir.SymbolicDim)
                and d.value is not None
                and (d.value not in program.dims or program.dims[d.value].minimum > 0)
            }
            _visit(model.graph, Contents(), {n for n in nonzero if n is not None}, {}, hits)
        return PassResult(len(hits), tuple(hits))


def _visit(graph: ir.Graph, contents: Contents, nonzero: set[str], first: _First, hits: list[Note]) -> None:
    for node in tuple(graph):
        if node.graph is None:
            continue
        refined = propagate(node, contents, nonzero)
        contents.visit(node)
        text = _fold(node, contents, nonzero) or _share(node, contents, nonzero, first)
        if text or refined:
            text = text or "dimensions named"
            hits.append(Note(node.name or node.op_type, text))
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                _visit(attribute.as_graph(), Contents(dict(contents.known)), nonzero, dict(first), hits)


def _fold(node: ir.Node, contents: Contents, nonzero: set[str]) -> str:
    if node.domain != "" or len(node.outputs) != 1:
        return ""
    out = node.outputs[0]
    found = contents.known.get(out)
    sizes = None if found is None or out.is_graph_output() else _fitting(found, out)
    if found is not None and sizes is not None:
        at = Rewriter(node)
        array = sizes.reshape((len(found.items),) if found.rank else ())
        name, out.name = out.name, None
        constant = at.const(array, name or "size")
        contents.known[constant] = found
        at.replace(out, constant)
        return f"always {sizes.tolist()}"
    if node.op_type in ("Reshape", "Expand") and len(node.inputs) == 2:
        target = contents.of(node.inputs[1])
        if target is not None and target.rank == 1:
            return (_fold_reshape if node.op_type == "Reshape" else _fold_expand)(node, target, nonzero)
    return ""


def _fitting(found: Known, out: ir.Value) -> Array | None:
    """The elements, if all are numbers that ``out`` can hold: int32 arithmetic may have wrapped around."""
    if found.static is None or out.dtype is None:
        return None
    kind = out.dtype.numpy()
    if kind.kind in "iu" and any(not np.iinfo(kind).min <= i <= np.iinfo(kind).max for i in found.static):
        return None
    return np.asarray(found.static, kind) if kind.kind in "iub" else None


def _share(node: ir.Node, contents: Contents, nonzero: set[str], first: _First) -> str:
    """Read sizes where they were first computed: exporters ask every layer for the same batch size."""
    out = node.outputs[0] if len(node.outputs) == 1 else None
    found = contents.known.get(out) if out is not None else None
    if out is None or found is None or out.graph is None or out.dtype is None:
        return ""
    if not all(isinstance(i, int) or _never_empty(i, nonzero) for i in found.items):
        return ""
    prior = first.setdefault((found, out.dtype), out)
    producer = prior.producer()
    if prior is out or producer is None or producer.graph is None or may_forward(out, prior):
        first[found, out.dtype] = out if producer is None or producer.graph is None else prior
        return ""
    forward(out, prior, inherit=False)  # a batch size belongs to no layer, and every layer asks for it
    return f"the same sizes as {prior.name}"


def _fold_expand(node: ir.Node, target: Known, nonzero: set[str]) -> str:
    x, out = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or len(target.items) > len(x.shape) or may_forward(out, x):
        return ""
    dims = [dim_of(d) for d in x.shape][len(x.shape) - len(target.items) :]
    if all(t == 1 or (t is not None and t == d) for t, d in zip(target.items, dims, strict=True)):
        forward(out, x)
        return "expands to its own shape"
    return ""


def _fold_reshape(node: ir.Node, target: Known, nonzero: set[str]) -> str:
    x, shape = node.inputs
    if x is None or shape is None or shape.is_initializer():
        return ""
    sizes = reshape_form(x, target, bool(node.attributes.get_int("allowzero", 0)), nonzero)
    if sizes is None:
        return ""
    at = Rewriter(node)
    new = at.op("Reshape", x, at.const(np.asarray(sizes, np.int64), f"{node.name}_shape"))
    new.type = node.outputs[0].type
    at.replace(node.outputs[0], new)
    return f"target is always {sizes}"


def reshape_form(x: ir.Value, target: Known, allow_zero: bool, nonzero: set[str]) -> list[int] | None:
    """``target`` as constants for a Reshape of ``x`` without allowzero, or None if it can't be said.

    0 copies a dimension, -1 infers the one left over; beside a -1 no other dimension may be empty.
    """
    dims: list[Dim] = [] if x.shape is None else [dim_of(d) for d in x.shape]
    sizes: list[int] = []
    for index, item in enumerate(target.items):
        if isinstance(item, int):
            if item == 0 and allow_zero:
                return None
            sizes.append(item)
        elif item is not None and index < len(dims) and dims[index] == item:
            sizes.append(0)
        else:
            sizes.append(-1)
    if sizes.count(-1) > 1:
        return None
    if -1 in sizes:
        others = [
            dims[i] if size == 0 and i < len(dims) else size for i, size in enumerate(sizes) if size != -1
        ]
        if not all(_never_empty(dim, nonzero) for dim in others):
            return None
    return sizes


def _never_empty(dim: Dim, nonzero: set[str]) -> bool:
    """Whether ``dim`` is at least 1: positive, an input's dimension, or sums and products of those."""
    return dim > 0 if isinstance(dim, int) else is_named(dim, nonzero)
