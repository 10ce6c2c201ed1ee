"""Which products give a model's logits."""

from __future__ import annotations

import onnx_ir as ir

_BEHIND = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Slice", "Tanh"})
"""What may stand between the output layer and the logits: a bias, a scale, a soft cap, views."""

_IDS = frozenset({"Cast", "Clip", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Where"})
"""What may stand between a model's token ids and the table they are looked up in."""

_HOPS = 6


def is_logits(value: ir.Value, hops: int = _HOPS) -> bool:
    """Whether ``value`` is a model output, up to a few operators of ``_BEHIND``."""
    if value.is_graph_output():
        return True
    readers = [usage.node for usage in value.uses()]
    return hops > 0 and any(
        n.op_type in _BEHIND and n.domain == "" and is_logits(n.outputs[0], hops - 1) for n in readers
    )


def is_over_vocabulary(value: ir.Value) -> bool:
    """Whether ``value`` is a language model's logits: an output as wide as a table has rows for its tokens.

    The last layer of other networks is one like those before it.
    """
    producer, shape = value.producer(), value.shape
    if producer is None or producer.graph is None or not shape or not is_logits(value):
        return False
    return shape[-1] in {
        table.shape[0]
        for node in producer.graph
        if node.op_type == "Gather" and node.domain == "" and node.attributes.get_int("axis", 0) == 0
        for table, ids in [node.inputs[:2]]
        if table is not None and table.shape is not None and len(table.shape) == 2 and are_ids(ids)
    }


def are_ids(value: ir.Value | None, hops: int = _HOPS) -> bool:
    """Whether ``value`` is a model input of integers, up to a few operators of ``_IDS``."""
    if value is None or value.const_value is not None:
        return False
    node = value.producer()
    if node is None:
        return value.dtype in (ir.DataType.INT64, ir.DataType.INT32)
    return hops > 0 and node.op_type in _IDS and any(are_ids(given, hops - 1) for given in node.inputs)
