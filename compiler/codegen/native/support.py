"""Which nodes C can be emitted for, and why not for others."""

from __future__ import annotations

import onnx_ir as ir

from ...program import dtype_name
from .constants import Constants
from .emit.base import CTYPES
from .emit.table import operator_of
from .sizes import Sizes

_CACHES = (ir.DataType.FLOAT16, ir.DataType.INT8)
"""dtypes that only attention reads and writes."""


def reason_against(node: ir.Node, constants: Constants, sizes: Sizes) -> str | None:
    """None if ``node`` can be emitted or is computed when compiled, else the reason it can't."""
    if node.op_type == "Constant" and node.domain == "":
        return None
    if node.outputs and all(constants.holds(v) for v in node.outputs):
        return None
    operator = operator_of(node)
    if operator is None:
        return "no kernel is written for it"
    for value in (*node.inputs, *node.outputs):
        if value is not None and (value.uses() or value.is_graph_output()) and not constants.holds(value):
            reason = _unfit(value, node.op_type == "FusedAttention", sizes)
            if reason is not None:
                return reason
    return operator.reason(node)


def _unfit(value: ir.Value, holds_cache: bool, sizes: Sizes) -> str | None:
    if value.dtype not in CTYPES or (value.dtype in _CACHES and not holds_cache):
        return f"{value.name!r} has dtype {dtype_name(value.dtype) if value.dtype else 'unknown'}"
    shape = sizes.shape(value)
    if shape is None:
        return f"the rank of {value.name!r} is not known"
    return (
        f"the shape {value.shape} of {value.name!r} is not known from the inputs'" if None in shape else None
    )
