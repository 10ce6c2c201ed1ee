"""How an entry with state may be run under ONNX Runtime: in place or not, with which rows together."""

from __future__ import annotations

import onnx_ir as ir

from ...program import Decoding

_NEW = 16
"""The input of GroupQueryAttention that says how many of each row's tokens are new."""

_DATA = {"GroupQueryAttention": {1: 3, 2: 4}, "ScatterElements": {0: 0}, "ScatterND": {0: 0}}
"""Output → input that its kernel leaves where it is if both are the same memory."""


def is_in_place(model: ir.Model, decoding: Decoding) -> bool:
    """Whether every state output is written into its input's memory, which nothing else reads.

    Otherwise an operator could still read the past after the present was written over it.
    """
    inputs = {value.name: value for value in model.graph.inputs}
    outputs = {value.name: value for value in model.graph.outputs}
    return all(_overwrites(inputs[s.input], outputs[s.output]) for s in decoding.state)


def is_row_by_row(model: ir.Model) -> bool:
    """Whether an attention in it would refuse several tokens of several rows behind a past."""
    return any(
        (node.domain, node.op_type) == ("com.microsoft", "GroupQueryAttention")
        and (len(node.inputs) <= _NEW or node.inputs[_NEW] is None)
        for node in model.graph.all_nodes()
    )


def _overwrites(past: ir.Value, present: ir.Value) -> bool:
    writer = present.producer()
    if writer is None or past.is_graph_output():
        return False
    place = _DATA.get(writer.op_type, {}).get(present.index() or 0)
    if place is None or place >= len(writer.inputs) or writer.inputs[place] is not past:
        return False
    return all(
        (node is writer and index == place) or node.op_type == "Shape"
        for node, index in ((use.node, use.idx) for use in past.uses())
    )
