"""A model with every dimension a number: what cost is counted on."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ..ir.shapes import infer_model_shapes


def concrete_model(model: ir.Model, sizes: Mapping[str, int]) -> ir.Model:
    """A clone whose named dimensions have these ``sizes``; weights are shared, dimensions inferred anew.

    Dimensions that only running would tell stay unknown.
    """
    clone = model.clone()
    for graph in clone.graphs():
        for value in graph.inputs:
            _bind(value, sizes)
        for node in graph:
            for value in node.outputs:
                _bind(value, sizes)
    infer_model_shapes(clone)
    return clone


def _bind(value: ir.Value, sizes: Mapping[str, int]) -> None:
    if value.shape is None:
        return
    dims: list[int | None] = []
    for dim in value.shape:
        bound = dim if isinstance(dim, int) else _evaluate(dim, sizes)
        dims.append(bound if isinstance(bound, int) else None)  # forget inference's own symbols
    value.shape = ir.Shape(dims)


def _evaluate(dim: ir.SymbolicDim, sizes: Mapping[str, int]) -> int | ir.SymbolicDim:
    if dim.value is None:
        return dim
    if dim.value in sizes:
        return sizes[dim.value]
    if dim.value.isidentifier():
        return dim
    try:
        return dim.evaluate(sizes)
    except ValueError:  # a name that is no expression
        return dim
