"""Shape arithmetic: static sizes become constants, and a Reshape's target becomes numbers, 0 and one -1."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter
from ...compiler.ir.symbol_sizes import Dims
from ...compiler.ir.symbols import Walk
from ...compiler.program import Dim, Program, dim_of
from ...compiler.reference import Array
from ..base import Note, Pass, PassContext, PassResult
from .forward import forward, may_forward

_First: TypeAlias = dict[tuple[tuple[Dim, ...], int, ir.DataType], ir.Value]


@dataclass(frozen=True)
class FoldShapes(Pass):
    """Replace what is computed from static sizes by constants, and Reshape targets by 0 and -1 forms."""

    name: ClassVar[str] = "fold-shapes"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Follow sizes through every graph in order, outer graphs first."""
        hits: list[Note] = []
        for model in program.entries.values():
            names = {d for v in model.graph.inputs for d in map(dim_of, v.shape or ()) if isinstance(d, str)}
            nonzero = {n for n in names if n not in program.dims or program.dims[n].minimum > 0}
            walk = Walk(model.graph, partial(_may_be_empty, nonzero=nonzero))
            _visit(model.graph, walk, nonzero, {}, hits)
        return PassResult(len(hits), tuple(hits))


def _visit(graph: ir.Graph, walk: Walk, nonzero: set[str], first: _First, hits: list[Note]) -> None:
    for node in tuple(graph):
        if node.graph is None:
            continue
        walk.visit(node)
        named = [value for value in node.outputs if walk.rename(value)]
        text = _fold(node, walk, nonzero) or _share(node, walk, nonzero, first)
        if text or named:
            hits.append(Note(node.name or node.op_type, text or "dimensions named"))
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
                _visit(attribute.as_graph(), walk, nonzero, dict(first), hits)


def _fold(node: ir.Node, walk: Walk, nonzero: set[str]) -> str:
    if node.domain != "" or len(node.outputs) != 1:
        return ""
    out = node.outputs[0]
    array = None if out.is_graph_output() else _static(out, walk)
    if array is not None:
        at = Rewriter(node)
        name, out.name = out.name, None
        at.replace(out, at.const(array, name or "size"))
        return f"always {array.tolist()}"
    if node.op_type in ("Reshape", "Expand"):
        target = walk.read(node.inputs[1])
        if target is not None:
            return (_fold_reshape if node.op_type == "Reshape" else _fold_expand)(node, target, nonzero)
    return ""


def _static(out: ir.Value, walk: Walk) -> Array | None:
    """The elements, if all are numbers that ``out`` can hold: int32 arithmetic may have wrapped around."""
    if out not in walk.contents or out.dtype is None or out.shape is None:
        return None
    items = [i for i in walk.read(out) or () if isinstance(i, int)]
    kind = out.dtype.numpy()
    if kind.kind in "iu" and any(not np.iinfo(kind).min <= i <= np.iinfo(kind).max for i in items):
        return None
    if kind.kind not in "iub" or len(items) != len(walk.contents[out]):
        return None
    return np.asarray(items, kind).reshape(() if len(out.shape) == 0 else -1)


def _share(node: ir.Node, walk: Walk, nonzero: set[str], first: _First) -> str:
    """Read sizes where they were first computed: exporters ask every layer for the same batch size."""
    out = node.outputs[0]
    if out not in walk.contents or out.graph is None or out.dtype is None or out.shape is None:
        return ""
    items = tuple(walk.read(out) or ())
    if not all(isinstance(i, int) or not _may_be_empty(i, nonzero) for i in items):
        return ""
    key = items, len(out.shape), out.dtype
    prior = first.setdefault(key, out)
    producer = prior.producer()
    if prior is out or producer is None or producer.graph is None or may_forward(out, prior):
        first[key] = out if producer is None or producer.graph is None else prior
        return ""
    forward(out, prior, inherit=False)  # a batch size belongs to no layer, and every layer asks for it
    return f"the same sizes as {prior.name}"


def _fold_expand(node: ir.Node, target: Dims, nonzero: set[str]) -> str:
    x, out = node.inputs[0], node.outputs[0]
    if x is None or x.shape is None or len(target) > len(x.shape) or may_forward(out, x):
        return ""
    dims = [dim_of(d) for d in x.shape][len(x.shape) - len(target) :]
    if all(t == 1 or (t is not None and t == d) for t, d in zip(target, dims, strict=True)):
        forward(out, x)
        return "expands to its own shape"
    return ""


def _fold_reshape(node: ir.Node, target: Dims, nonzero: set[str]) -> str:
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


def reshape_form(x: ir.Value, target: Dims, allow_zero: bool, nonzero: set[str]) -> list[int] | None:
    """``target`` as constants for a Reshape of ``x`` without allowzero, or None if it can't be said.

    0 copies a dimension, -1 infers the one left over; beside a -1 no other dimension may be empty.
    """
    dims: list[Dim] = [] if x.shape is None else [dim_of(d) for d in x.shape]
    sizes: list[int] = []
    for index, item in enumerate(target):
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
        if any(_may_be_empty(dim, nonzero) for dim in others):
            return None
    return sizes


def _may_be_empty(dim: Dim, nonzero: set[str]) -> bool:
    """Whether ``dim`` may be 0: it is not positive, an input's dimension, or sums and products of those."""
    if not isinstance(dim, str) or not re.fullmatch(r"[\w\s+*()]+", dim) or "**" in dim:
        return not isinstance(dim, int) or dim <= 0
    words = re.findall(r"\w+", dim)
    return not all(w in nonzero or (w.isdigit() and int(w) > 0) for w in words)
