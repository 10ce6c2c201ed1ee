"""Any onnx_ir model as a Program: one opset, no functions, unique names, constants lifted, types, sources."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, NameFixPass

from ...compiler.errors import ModelError, UnsupportedError
from ...compiler.ir.check_structure import find_cycle
from ...compiler.ir.shapes import infer_shapes
from ...compiler.program import Call, DimRange, Program
from .layers import layers_of, set_node_sources
from .opset import needs_ranks, raise_opset
from .signature import input_symbols, name_dims

IR_VERSION = 10
"""The least IR version written: the first that every field of opset 23 fits in."""


def program_from_model(
    model: ir.Model,
    *,
    framework: str = "onnx",
    name: str = "",
    dims: Mapping[str, DimRange] | None = None,
) -> Program:
    """Normalise ``model`` in place and wrap it as the program every pass expects.

    Functions are inlined, the opset is raised, constants are lifted to initializers, nodes and values get
    unique names (inputs and outputs keep theirs), every node a source (nodes that have one keep it), every
    value its inferred type. Weights are not read. ``dims`` gives ranges of named dimensions; the others
    get 1.. . An initializer that is also an input is a constant before IR version 4 and stays an
    overridable default from then on.

    Raises: ModelError if the graph is cyclic or its functions are recursive.
    """
    place = name or model.graph.name or "model"
    if "ai.onnx" in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    sort_graphs(model, place)
    if model.ir_version is None or model.ir_version < 4:
        _drop_default_inputs(model.graph)
    set_node_sources(model, framework)
    inline_functions(model, place)
    model.ir_version = max(model.ir_version or 0, IR_VERSION)
    name_dims(model)
    program = Program({"main": model}, call=_call(model.graph), source={"framework": framework})
    if name:
        program.source["model"] = name
    if needs_ranks(model):
        infer_shapes(program)
    note = raise_opset(model)
    if note:
        program.source["opset_note"] = note
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    NameFixPass()(model)
    infer_shapes(program)
    usual = {name: DimRange(0 if "past" in name else 1) for name in input_symbols(model.graph)}
    program.dims = {name: (dims or {}).get(name, span) for name, span in usual.items()}
    program.layers = layers_of(model)
    return program


def sort_graphs(model: ir.Model, place: str) -> None:
    """Put every graph into the order of its data flow. Raises: ModelError if one is cyclic."""
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for graph in graphs:
        try:
            graph.sort()
        except ValueError:
            cycle = find_cycle(graph)
            nodes = " -> ".join(f"{n.name or n.op_type}" for n in (*cycle, *cycle[:1]))
            raise ModelError(place, f"the graph is cyclic: {nodes}", "export the model again") from None


def _drop_default_inputs(graph: ir.Graph) -> None:
    for value in list(graph.inputs):
        if value.name in graph.initializers:
            graph.inputs.remove(value)


def inline_functions(model: ir.Model, place: str) -> None:
    """Inline all functions; nodes from a function of another opset remember their version.

    Raises: ModelError if a function calls itself, UnsupportedError if one can't be inlined.
    """
    if not model.functions:
        return
    for function in model.functions.values():
        for domain, version in list(function.opset_imports.items()):
            theirs = "" if domain == "ai.onnx" else domain
            ours = model.opset_imports.setdefault(theirs, version)
            if theirs != domain:
                del function.opset_imports[domain]
            function.opset_imports[theirs] = ours
            if theirs == "" and ours != version:
                for node in function.all_nodes():
                    node.version = version if node.domain == "" else node.version
    try:
        InlinePass()(model)
    except ir.passes.PreconditionError as error:
        raise ModelError(place, str(error), "functions can't call themselves") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise UnsupportedError(
            place, f"a function can't be inlined: {error}", "inline it before export"
        ) from error
    model.functions.clear()


def _call(graph: ir.Graph) -> Call:
    inputs = [str(v.name) for v in graph.inputs if v.name not in graph.initializers]
    outputs = [str(v.name) for v in graph.outputs]
    return Call({n: n for n in inputs}, {"dict": dict(zip(outputs, outputs, strict=True))})
