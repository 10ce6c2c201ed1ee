"""Which nodes there are rules for, and why not for others."""

from __future__ import annotations

import onnx_ir as ir

from ...errors import Problem
from ...options import Target
from ...program import Program, dtype_name
from .rules import rule_of

_NAMES = """FLOAT DOUBLE FLOAT16 BFLOAT16 INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 BOOL"""

DTYPES = frozenset(ir.DataType[name] for name in _NAMES.split())
"""Of values that are computed."""


def reason_against(node: ir.Node, target: Target) -> str | None:
    """None if ``node`` can be lowered, else the reason it can't."""
    rule = rule_of(node)
    if rule is None:
        return "TVM has no rule for it"
    if target.device == "cpu" and node.op_type == "CachedAttention":
        halves = [v for v in node.inputs[:5] if v is not None and v.dtype != ir.DataType.FLOAT]
        if halves:
            return f"{halves[0].name!r} is no float32, which attention over a cache is written in for CPUs"
    for value in (*node.inputs, *node.outputs):
        if value is None or (not value.uses() and not value.is_graph_output()):
            continue
        if value.dtype not in DTYPES and value.const_value is None:
            return f"{value.name!r} has dtype {dtype_name(value.dtype) if value.dtype else 'unknown'}"
        if value.shape is None:
            return f"the rank of {value.name!r} is not known"
    return rule.reason(node)


def refused(program: Program, target: Target) -> list[Problem]:
    """Every node of the program that can't be lowered, with the reason."""
    return [
        Problem(f"node {node.name!r} ({node.op_type})", reason)
        for model in program.entries.values()
        for node in model.graph
        if (reason := reason_against(node, target)) is not None
    ]
