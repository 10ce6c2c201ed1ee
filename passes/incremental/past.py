"""Decoders that were exported with a cache of their own: the same model without a past."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...compiler.ir.rewrite import Rewriter, remove_dead
from ...compiler.ir.shapes import infer_model_shapes
from ...compiler.program import Program, dim_of
from ..base import PassContext, decline
from ..cleanup import CLEANUP


def past_inputs(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """Inputs that a graph output continues: joined with new keys or values along the sequence."""
    found: dict[ir.Value, ir.Value] = {}
    for node in graph:
        if node.domain != "":
            continue
        if node.op_type == "Concat" and len(node.inputs) == 2:
            past, present = node.inputs[0], node.outputs[0]
            along = past is not None and past.shape is not None and len(past.shape) == 4
            if past is not None and along and node.attributes.get_int("axis", 0) in (2, -2):
                _pair(found, past, present)
        elif node.op_type == "Attention" and len(node.inputs) > 5 and len(node.outputs) > 2:
            for past, present in zip(node.inputs[4:6], node.outputs[1:3], strict=True):
                if past is not None:
                    _pair(found, past, present)
    return found


def _pair(found: dict[ir.Value, ir.Value], past: ir.Value, present: ir.Value) -> None:
    if past.is_graph_input() and not past.is_initializer():
        output = present if present.is_graph_output() else _copied_out(present)
        if output is not None:
            found[past] = output


def _copied_out(value: ir.Value) -> ir.Value | None:
    """The graph output that is ``value`` under another name."""
    for user in value.consumers():
        if user.op_type in ("Identity", "Cast") and user.outputs[0].is_graph_output():
            return user.outputs[0]
    return None


def without_past(program: Program) -> Program:
    """A program whose main entry is ``program``'s for a past of no tokens; the same if it takes none.

    Padding masks that cover past and new tokens then cover the new ones.

    Raises: NoMatch if the number of new tokens has no name.
    """
    if not past_inputs(program.main.graph):
        return program
    made = Program({"main": program.main.clone()}, dims=dict(program.dims), context=program.context)
    graph = made.main.graph
    pairs = past_inputs(graph)
    tokens = _tokens(graph, pairs)
    assert tokens.shape is not None
    batch, sequence = tokens.shape
    for node in tuple(graph):
        if node.op_type == "Attention" and any(v in pairs for v in node.inputs[4:6]):
            at = Rewriter(node)
            attributes = {name: a.value for name, a in node.attributes.items()}
            whole = at.op("Attention", *node.inputs[:4], **attributes)
            node.outputs[0].replace_all_uses_with(whole, replace_graph_outputs=True)
            whole.type, whole.shape = node.outputs[0].type, node.outputs[0].shape
    for past, output in pairs.items():
        graph.outputs.remove(output)
        _empty(graph, past, tokens)
    for value in graph.inputs:
        masks = value.shape is not None and len(value.shape) == 2 and "mask" in str(value.name)
        if masks and value is not tokens:
            value.shape = ir.Shape([batch, sequence])
    remove_dead([n for n in graph if not any(o.uses() or o.is_graph_output() for o in n.outputs)])
    for node in graph:
        for value in node.outputs:
            value.shape = None
    infer_model_shapes(made.main)
    for _ in range(2):
        for step in CLEANUP:
            step.run(made, PassContext())
    return made


def _tokens(graph: ir.Graph, pairs: dict[ir.Value, ir.Value]) -> ir.Value:
    for value in graph.inputs:
        flat = value not in pairs and value.shape is not None and len(value.shape) == 2
        named = any(word in str(value.name) for word in ("mask", "position"))
        if flat and not named and value.dtype in (ir.DataType.INT64, ir.DataType.INT32):
            return value
    return decline("a past is read, but no input has token ids")


def _empty(graph: ir.Graph, past: ir.Value, tokens: ir.Value) -> None:
    """Let a past of no tokens stand for the input ``past``."""
    assert past.shape is not None and past.dtype is not None
    heads, size = dim_of(past.shape[1]), dim_of(past.shape[3])
    if not isinstance(heads, int) or not isinstance(size, int):
        decline(f"{past.name} has no known number of heads or head size")
    users = past.consumers()
    for node in users:
        if node.op_type == "Concat" and node.inputs[0] is past and node.inputs[1] is not None:
            node.outputs[0].replace_all_uses_with(node.inputs[1], replace_graph_outputs=False)
    if past.uses():
        at = Rewriter(graph[0])
        batch = at.op("Shape", tokens, start=0, end=1)
        rest = at.const(np.array([heads, 0, size], np.int64), "past_rest")
        zero = at.const(np.zeros((), past.dtype.numpy()), "past_zero")
        empty = at.op("Expand", zero, at.op("Concat", batch, rest, axis=0))
        empty.type = past.type
        past.replace_all_uses_with(empty)
    graph.inputs.remove(past)
