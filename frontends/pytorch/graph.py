"""From the exporter's model to a Program: names, dimension names, folded shape arithmetic."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from .capture import quiet
from .origins import ROOT
from .weights import may_fold

FOLD_INPUT, FOLD_OUTPUT = 1024, 65536
"""Element counts up to which constants are folded at import: shapes, masks and tables, never weights."""


def rename(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], dims: Mapping[str, str]) -> None:
    """Give inputs and outputs their names, parameters their paths in the module, symbols their dimensions."""
    for name, value in list(model.graph.initializers.items()):
        if name.startswith(f"{ROOT}."):
            value.name = name.removeprefix(f"{ROOT}.")
            if value.const_value is not None:
                value.const_value.name = value.name
    _separate_outputs(model.graph)
    public = [*zip(model.graph.inputs, inputs, strict=True), *zip(model.graph.outputs, outputs, strict=True)]
    taken = {value.name: value for value in _values(model.graph)}
    for value, name in public:
        other = taken.get(name)
        if other is not None and other is not value:
            other.name = f"{name}_value"
        value.name = name
    _rename_symbols(model, dims)


def name_weights(model: ir.Model, names: Mapping[int, str]) -> None:
    """Name initializers by the address of their data."""
    for value in list(model.graph.initializers.values()):
        raw: Any = getattr(value.const_value, "raw", None)
        name = names.get(raw.data_ptr()) if hasattr(raw, "data_ptr") else None
        if name is not None and name not in model.graph.initializers:
            value.name = name


def _separate_outputs(graph: ir.Graph) -> None:
    """An Identity for every output that is also an input, a constant or another output."""
    seen: set[int] = set()
    for index, value in enumerate(graph.outputs):
        if id(value) in seen or value.producer() is None:
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]
        seen.add(id(graph.outputs[index]))


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = [output for node in graph for output in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _rename_symbols(model: ir.Model, dims: Mapping[str, str]) -> None:
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, dims)) + r")\b") if dims else re.compile(r"(?!)")
    graphs: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for graph in graphs:
        for value in [v for node in graph for v in node.outputs] + list(graph.inputs):
            if value.shape is not None and any(isinstance(d, ir.SymbolicDim) for d in value.shape):
                value.shape = ir.Shape([_renamed(dim, pattern, dims) for dim in value.shape])


def _renamed(
    dim: int | ir.SymbolicDim, pattern: re.Pattern[str], dims: Mapping[str, str]
) -> int | str | None:
    """A size that tracing found to be a constant comes as a symbol of digits."""
    if isinstance(dim, int) or (dim.value is not None and dim.value.isdigit()):
        return int(str(dim))
    return None if dim.value is None else pattern.sub(lambda match: dims[match[1]], dim.value)


def simplify(model: ir.Model) -> None:
    """Inline, fold shape arithmetic, lift constants, drop what is unused or double.

    Everything else stays as the module has it: tidying, raising and fusing is the passes' work.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer

    with quiet():
        common.InlinePass()(model)
        optimizer.fold_constants_ir(
            model,
            onnx_shape_inference=True,
            input_size_limit=FOLD_INPUT,
            output_size_limit=FOLD_OUTPUT,
            should_fold=may_fold,
        )
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        common.DeduplicateInitializersPass()(model)
        common.CommonSubexpressionEliminationPass()(model)
        common.RemoveUnusedNodesPass()(model)
