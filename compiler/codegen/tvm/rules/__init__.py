"""Lowering rules by operator: one file per family, one table."""

from __future__ import annotations

import onnx_ir as ir

from ..lowering import Rule
from . import (
    attention,
    convolution,
    elementwise,
    images,
    indexing,
    integers,
    normalization,
    products,
    quantized,
    reductions,
    views,
)

_FAMILIES = (
    elementwise.RULES,
    products.RULES,
    views.RULES,
    integers.RULES,
    reductions.RULES,
    indexing.RULES,
    normalization.RULES,
    attention.RULES,
    convolution.RULES,
    images.RULES,
    quantized.RULES,
)

RULES: dict[str, Rule] = {name: rule for family in _FAMILIES for name, rule in family.items()}
"""Operator → rule; of other domains than ONNX's with the domain in front."""


def rule_of(node: ir.Node) -> Rule | None:
    """The rule of a node's operator."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return RULES.get(f"{domain}.{node.op_type}" if domain else node.op_type)
