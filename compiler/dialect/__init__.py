"""Operators beyond onnx.defs: schema, shape inference, numpy reference and cost; one file per family."""

from __future__ import annotations

from . import (
    attention,
    cache,
    collective,
    conv,
    fused_attention,
    gather,
    gelu,
    gqa,
    integer,
    linear,
    matmul,
    norm,
    rotary,
)
from .base import MIAOTUI, MICROSOFT, Inferred, OpSchema, Parameter

_ALL = (
    *attention.SCHEMAS,
    *cache.SCHEMAS,
    *collective.SCHEMAS,
    *conv.SCHEMAS,
    *fused_attention.SCHEMAS,
    *gather.SCHEMAS,
    *gelu.SCHEMAS,
    *gqa.SCHEMAS,
    *integer.SCHEMAS,
    *linear.SCHEMAS,
    *matmul.SCHEMAS,
    *norm.SCHEMAS,
    *rotary.SCHEMAS,
)
_SCHEMAS: dict[tuple[str, str], OpSchema] = {(s.domain, s.name): s for s in _ALL}


def schema(domain: str, op_type: str) -> OpSchema | None:
    """The schema of ``domain::op_type``, or None for an operator the dialect does not describe."""
    return _SCHEMAS.get((domain, op_type))


def schemas() -> tuple[OpSchema, ...]:
    """Every schema of the dialect."""
    return tuple(_SCHEMAS.values())


__all__ = ["MIAOTUI", "MICROSOFT", "Inferred", "OpSchema", "Parameter", "schema", "schemas"]
