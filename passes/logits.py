"""Which products give a model's logits."""

from __future__ import annotations

import onnx_ir as ir

_BEHIND = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Reshape", "Slice", "Tanh"})
"""What may stand between the output layer and the logits: a bias, a scale, a soft cap, views."""

_HOPS = 6


def is_logits(value: ir.Value, hops: int = _HOPS) -> bool:
    """Whether ``value`` is a model output, up to a few operators of ``_BEHIND``."""
    if value.is_graph_output():
        return True
    readers = [usage.node for usage in value.uses()]
    return hops > 0 and any(
        n.op_type in _BEHIND and n.domain == "" and is_logits(n.outputs[0], hops - 1) for n in readers
    )
