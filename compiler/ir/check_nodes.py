"""Operator invariants: known op, arity, attributes, and the type constraints of the operator's signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from ..errors import Problem
from .check_structure import place
from .signatures import STANDARD_DOMAINS, Formal, Signature, signature, type_name


def operator_problems(model: ir.Model) -> Iterator[Problem]:
    """Violations of every node of the model, subgraphs and functions included."""
    for node in model.graph.all_nodes():
        yield from _node_problems(node, model, model.opset_imports)
    for function in model.functions.values():
        for node in function.all_nodes():
            yield from _node_problems(node, model, function.opset_imports)


def _node_problems(node: ir.Node, model: ir.Model, opsets: Mapping[str, int]) -> Iterator[Problem]:
    where = place(node)
    if node.op_identifier() in model.functions:
        function = model.functions[node.op_identifier()]
        if len(node.inputs) > len(function.inputs) or len(node.outputs) > len(function.outputs):
            yield Problem(where, f"calls a function of {len(function.inputs)} inputs with {len(node.inputs)}")
        return
    version = opsets.get(node.domain)
    if version is None:
        yield Problem(where, f"domain {node.domain or 'ai.onnx'!r} is not among the model's opset imports")
        return
    known = signature(node.domain, node.op_type, version)
    if known is None:
        if node.domain in STANDARD_DOMAINS:
            yield Problem(where, f"no such operator in {node.domain or 'ai.onnx'} opset {version}")
        return
    if known.deprecated:
        yield Problem(where, f"is deprecated at opset {version}")
    for fact in (*_arity(node, known), *_attributes(node, known), *_types(node, known)):
        yield Problem(where, fact)


def _arity(node: ir.Node, known: Signature) -> Iterator[str]:
    if not known.min_inputs <= len(node.inputs) <= known.max_inputs:
        yield f"has {len(node.inputs)} inputs, wants {_range(known.min_inputs, known.max_inputs)}"
    if not known.min_outputs <= len(node.outputs) <= known.max_outputs:
        yield f"has {len(node.outputs)} outputs, wants {_range(known.min_outputs, known.max_outputs)}"
    for index, formal in enumerate(known.inputs[: len(node.inputs)]):
        if node.inputs[index] is None and not formal.optional and not formal.variadic:
            yield f"leaves out required input {index} ({formal.name})"


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"at least {low}" if high > 1 << 16 else f"{low} to {high}"


def _attributes(node: ir.Node, known: Signature) -> Iterator[str]:
    for attr in node.attributes.values():
        expected = known.attributes.get(attr.name)
        if expected is None:
            yield f"has no attribute {attr.name!r}"
        elif attr.type.name != expected[0]:
            yield f"attribute {attr.name!r} is {attr.type.name}, wants {expected[0]}"
    for name, (_, required) in known.attributes.items():
        if required and name not in node.attributes:
            yield f"lacks required attribute {name!r}"


def _types(node: ir.Node, known: Signature) -> Iterator[str]:
    bound: dict[str, tuple[str, str]] = {}
    for direction, values, formals in (
        ("input", node.inputs, known.inputs),
        ("output", node.outputs, known.outputs),
    ):
        for index, (value, formal) in enumerate(_paired(values, formals)):
            kind = None if value is None else type_name(value.type)
            if kind is None:
                continue
            here = f"{direction} {index} ({formal.name})"
            if formal.allowed and kind not in formal.allowed:
                yield f"{here} is {kind}, which {formal.variable} does not allow"
            elif formal.homogeneous:
                other, first = bound.setdefault(formal.variable, (kind, here))
                if other != kind:
                    yield f"{here} is {kind}, but {first} of the same type {formal.variable} is {other}"


def _paired(
    values: Sequence[ir.Value | None], formals: Sequence[Formal]
) -> Iterator[tuple[ir.Value | None, Formal]]:
    for index, value in enumerate(values):
        if formals and (index < len(formals) or formals[-1].variadic):
            yield value, formals[min(index, len(formals) - 1)]
