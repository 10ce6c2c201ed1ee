"""Let an existing value stand for another, minding graph outputs, scopes, names and sources."""

from __future__ import annotations

import onnx_ir as ir

from ...compiler.ir.provenance import merge_sources
from ...compiler.ir.rewrite import remove_dead
from ..base import decline


def may_forward(old: ir.Value, new: ir.Value) -> str:
    """Why ``new`` can't stand for ``old``, or the empty string if it can."""
    if not old.is_graph_output():
        return ""
    if new.is_graph_output():
        return "both values are graph outputs"
    if new.producer() is None:
        return "a graph output has to be computed, not an input or an initializer"
    if new.graph is not old.graph:
        return "a subgraph's output has to be computed inside it"
    return ""


def forward(old: ir.Value, new: ir.Value, inherit: bool = True) -> None:
    """Replace ``old`` by the existing ``new`` and remove the nodes this leaves unused.

    A graph output keeps its name: ``new`` takes it over. The producer of ``new`` gets the removed nodes'
    sources, unless ``inherit`` is off. Raises: NoMatch where ``may_forward`` objects.
    """
    if reason := may_forward(old, new):
        decline(reason)
    producer = old.producer()
    output_name = old.name if old.is_graph_output() else None
    if new.shape is None and not new.is_graph_input():
        new.shape = old.shape
    if new.type is None:
        new.type = old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    if output_name is not None:
        old.name = None
        new.name = output_name
    dead = remove_dead([producer] if producer is not None else [])
    heir = new.producer()
    if inherit and heir is not None:
        merge_sources(heir, dead)


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether both shapes are known and equal in every dimension, by size or by symbol."""
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(known_equal(m, n) for m, n in zip(a.shape, b.shape, strict=True))


def known_equal(a: int | ir.SymbolicDim, b: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions are the same size or the same named symbol."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.value is not None and a.value == b.value
