"""Shapes that a file records for inner values and outputs: hints, overruled by what the operators give."""

from __future__ import annotations

import math

import onnx_ir as ir

from ...compiler.errors import ModelError, Problem
from ...compiler.ir.check_shapes import inference_problems
from ...compiler.ir.shapes import infer_model_shapes
from ...compiler.ir.signatures import signature
from ...compiler.program import dim_of

MAX_INPUT = 2**31
"""Elements an input may have: no tensor of more is ever fed, and examples of it have to be made."""


def settle_shapes(model: ir.Model) -> None:
    """Infer all shapes anew from the inputs, then add what only the file knows.

    Exporters record wrong sizes often enough (a batch of 1 on the output of a model with a dynamic batch),
    and ONNX Runtime runs such models with a warning.
    """
    recorded: list[tuple[ir.Value, ir.Shape]] = []
    for node in model.graph.all_nodes():
        if signature(node.domain, node.op_type, model.opset_imports.get(node.domain, 1)) is None:
            continue
        for value in node.outputs:
            if value.shape is not None and isinstance(value.type, ir.TensorType):
                recorded.append((value, value.shape))
                value.shape = None
    if not recorded:
        return
    infer_model_shapes(model)
    symbols = {dim_of(dim) for value in model.graph.inputs for dim in value.shape or ()}
    for value, shape in recorded:
        value.shape = _merged(value.shape, shape, symbols)


def _merged(inferred: ir.Shape | None, recorded: ir.Shape, symbols: set[int | str | None]) -> ir.Shape:
    if inferred is None:
        return recorded
    if len(inferred) != len(recorded):
        return inferred
    return ir.Shape(
        [
            new if isinstance(new, int) or dim_of(new) in symbols or dim_of(old) is None else old
            for new, old in zip(inferred, recorded, strict=True)
        ]
    )


def check_shapes(model: ir.Model, place: str) -> None:
    """Refuse a model whose operators can't take the shapes they are given.

    Raises: ModelError with every node whose inference fails or contradicts the declared types.
    """
    fix = "declare the shapes of the inputs as the model takes them, or export it again"
    found = [Problem(f"{place}: {p.place}", p.fact, p.fix or fix) for p in inference_problems(model)]
    if found:
        raise ModelError.of(found)


def check_types(model: ir.Model, place: str) -> None:
    """Refuse a model whose signature can't be met.

    Raises: ModelError with every input and output without dtype, and every input too large to be made.
    """
    found = []
    for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs)):
        for value in values:
            where = f"{place}: {kind} {value.name!r}"
            if value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
                fact = "has no dtype, and none can be inferred"
                found.append(Problem(where, fact, "declare its type in the model"))
            elif (
                kind == "input" and math.prod(d for d in value.shape or () if isinstance(d, int)) > MAX_INPUT
            ):
                fact = f"declares {value.shape}, more than {MAX_INPUT:,} elements"
                found.append(Problem(where, fact, "declare the sizes that it is used with"))
    if found:
        raise ModelError.of(found)


def _elements(value: ir.Value) -> int:
    return math.prod(dim for dim in value.shape or () if isinstance(dim, int))
