"""A model's own inputs and outputs in 16 bits, where the caller asked for that."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from ...compiler.ir.provenance import merge_sources
from ...compiler.program import StateTensor
from ..base import Note
from .half import Format

FLOAT = ir.DataType.FLOAT


def narrow_interface(model: ir.Model, form: Format) -> list[Note]:
    """Give float32 inputs and outputs of ``model`` the dtype of ``form``, names kept; a note for each.

    What reads an input in 16 bits reads it without a cast, and so do outputs that were computed so; all else
    goes through one cast. An output that is an input or a constant stays as it is.
    """
    graph = model.graph
    notes = []
    for value in graph.inputs:
        if value.dtype == FLOAT and value.name not in graph.initializers and not value.is_graph_output():
            _narrow_input(graph, value, form)
            notes.append(Note(str(value.name), f"input is {form.name}"))
    made: dict[ir.Value, ir.Value] = {}
    for index, value in enumerate(graph.outputs):
        if value.dtype == FLOAT and value.producer() is not None:
            if value not in made:
                made[value] = _narrow_output(graph, value, form)
                notes.append(Note(str(made[value].name), f"output is {form.name}"))
            graph.outputs[index] = made[value]
    for value in made:
        _drop_unread(value)
    return notes


def narrow_state(model: ir.Model, states: Iterable[StateTensor], form: Format) -> list[Note]:
    """Keep in 16 bits what lives between runs and is computed in 16 bits anyway; a note for each.

    What a run reads of it the one before has written in 16 bits, so it needs no clamp and no cast, and a
    cache may be written in place. A state that something reads or writes in float32 stays as it is.
    """
    graph, notes = model.graph, []
    inputs = {value.name: value for value in graph.inputs}
    places = {value.name: index for index, value in enumerate(graph.outputs)}
    for state in states:
        past, present = inputs[state.input], graph.outputs[places[state.output]]
        casts = _casts_of(past, form)
        producer = present.producer()
        source = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
        if past.dtype != FLOAT or casts is None or source is None or source.dtype != form.dtype:
            continue
        past.type = ir.TensorType(form.dtype)
        for node in casts:
            for use in tuple(node.outputs[0].uses()):
                if use.node not in casts:
                    use.node.replace_input_with(use.idx, past)
        for node in reversed(casts):
            graph.remove(node, safe=True)
        graph.outputs[places[state.output]] = _narrow_output(graph, present, form)
        _drop_unread(present)
        notes.append(Note(state.input, f"state is {form.name}"))
    return notes


def _casts_of(past: ir.Value, form: Format) -> list[ir.Node] | None:
    """Clamps and casts to 16 bits, in order, that alone read ``past``, its shape aside; None if others do."""
    found: list[ir.Node] = []
    for use in past.uses():
        node = use.node
        if _casts_to(node, form):
            found.append(node)
        elif node.op_type == "Clip" and all(_casts_to(u.node, form) for u in node.outputs[0].uses()):
            found += [node, *(u.node for u in node.outputs[0].uses())]
        elif node.op_type != "Shape":
            return None
    if any(node.outputs[0].is_graph_output() for node in found):
        return None
    return list(dict.fromkeys(found))


def _narrow_input(graph: ir.Graph, value: ir.Value, form: Format) -> None:
    readers = list(value.uses())
    narrow = [use.node for use in readers if _casts_to(use.node, form)]
    wide = [use for use in readers if use.node not in narrow]
    value.type = ir.TensorType(form.dtype)
    if wide:
        node = ir.node("Cast", [value], {"to": FLOAT})
        graph.insert_before(graph[0], node)
        merge_sources(node, [use.node for use in wide])
        cast = node.outputs[0]
        cast.name, cast.type, cast.shape = f"{value.name}.fp32", ir.TensorType(FLOAT), value.shape
        for use in wide:
            use.node.replace_input_with(use.idx, cast)
    for node in narrow:
        output = node.outputs[0]
        for use in tuple(output.uses()):
            use.node.replace_input_with(use.idx, value)
        if not output.is_graph_output() and node.graph is not None:
            node.graph.remove(node, safe=True)


def _narrow_output(graph: ir.Graph, value: ir.Value, form: Format) -> ir.Value:
    """The value that takes the place of an output, and its name."""
    name, producer = value.name, value.producer()
    assert producer is not None
    source = producer.inputs[0] if producer.op_type == "Cast" and producer.domain == "" else None
    if source is None or source.dtype != form.dtype or source.producer() is None or source.is_graph_output():
        node = ir.node("Cast", [value], {"to": form.dtype})
        graph.append(node)
        merge_sources(node, [producer])
        source = node.outputs[0]
        source.type, source.shape = ir.TensorType(form.dtype), value.shape
    value.name, source.name = f"{name}.fp32", name
    return source


def _drop_unread(value: ir.Value) -> None:
    """The cast to float32 that nothing reads any more."""
    node = value.producer()
    unread = not value.uses() and not value.is_graph_output()
    if node is not None and node.op_type == "Cast" and node.graph is not None and unread:
        node.graph.remove(node, safe=True)


def _casts_to(node: ir.Node, form: Format) -> bool:
    return (
        node.op_type == "Cast" and node.domain == "" and node.attributes.get_int("to", 0) == form.dtype.value
    )
