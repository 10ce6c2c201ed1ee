"""Signatures: arity, attributes and type variables of every operator, from onnx.defs or the dialect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx_ir as ir

from .. import dialect

STANDARD_DOMAINS = frozenset({"", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training"})
"""Domains whose operators are all in onnx.defs; an operator of another domain may be opaque."""


@dataclass(frozen=True, slots=True)
class Formal:
    """A formal parameter. ``variable`` is a type variable or a concrete type; ``allowed`` empty means any."""

    name: str
    variable: str
    optional: bool
    variadic: bool
    homogeneous: bool
    allowed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Signature:
    """How an operator may be called. ``attributes`` maps names to type and whether required."""

    inputs: tuple[Formal, ...]
    outputs: tuple[Formal, ...]
    min_inputs: int
    max_inputs: int
    min_outputs: int
    max_outputs: int
    attributes: Mapping[str, tuple[str, bool]]
    deprecated: bool = False


@cache
def signature(domain: str, op_type: str, version: int) -> Signature | None:
    """The signature of an operator at an opset version; None if no one describes it."""
    if domain in STANDARD_DOMAINS and (found := _from_onnx(domain, op_type, version)):
        return found
    known = dialect.schema(domain, op_type)
    return None if known is None else _from_dialect(known)


def _from_onnx(domain: str, op_type: str, version: int) -> Signature | None:
    import onnx

    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    option = onnx.defs.OpSchema.FormalParameterOption

    def formal(p: onnx.defs.OpSchema.FormalParameter) -> Formal:
        return Formal(
            p.name,
            p.type_str,
            p.option == option.Optional,
            p.option == option.Variadic,
            p.is_homogeneous,
            frozenset(p.types),
        )

    return Signature(
        tuple(map(formal, schema.inputs)),
        tuple(map(formal, schema.outputs)),
        schema.min_input,
        schema.max_input,
        schema.min_output,
        schema.max_output,
        {name: (str(a.type).rpartition(".")[2], a.required) for name, a in schema.attributes.items()},
        schema.deprecated,
    )


def _from_dialect(schema: dialect.OpSchema) -> Signature:
    def formal(p: dialect.Parameter) -> Formal:
        allowed = frozenset({p.variable}) if "(" in p.variable else frozenset[str]()
        return Formal(p.name, p.variable, p.optional, False, True, allowed)

    return Signature(
        tuple(map(formal, schema.inputs)),
        tuple(map(formal, schema.outputs)),
        schema.min_inputs,
        len(schema.inputs),
        schema.min_outputs,
        len(schema.outputs),
        {name: (a.kind.name, a.required) for name, a in schema.attributes.items()},
    )


def type_name(kind: ir.TypeProtocol | None) -> str | None:
    """onnx's spelling of a type, as in type constraints: ``tensor(float)``, ``seq(tensor(int64))``."""
    if kind is None:
        return None
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        inner = type_name(kind.elem_type)
        return (
            None
            if inner is None
            else f"{'seq' if isinstance(kind, ir.SequenceType) else 'optional'}({inner})"
        )
    if kind.dtype == ir.DataType.UNDEFINED:
        return None
    prefix = "sparse_tensor" if isinstance(kind, ir.SparseTensorType) else "tensor"
    return f"{prefix}({kind.dtype.name.lower()})"
