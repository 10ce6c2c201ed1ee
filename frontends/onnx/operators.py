"""Operators of a model that can't run: nobody knows them, or they are used against their signature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from ...compiler.errors import ModelError, Problem, ToolError, UnsupportedError, require
from ...compiler.ir.signatures import STANDARD_DOMAINS, signature
from ...compiler.ir.verify import problems

_SHOWN = 3


def check_operators(model: ir.Model, place: str) -> None:
    """Refuse a model with operators that no registry has, or that are used against their signature.

    Functions of the model count as known.
    Raises: UnsupportedError with every unknown operator, its count and the names of its nodes; ModelError
    with every node whose inputs, outputs, attributes or types do not fit its operator.
    """
    unknown: dict[tuple[str, str, int], list[str]] = {}
    nodes = [(node, model.opset_imports) for node in model.graph.all_nodes()]
    for function in model.functions.values():
        nodes += [(node, function.opset_imports) for node in function.all_nodes()]
    for node, opsets in nodes:
        version = opsets.get(node.domain, 1)
        if node.op_identifier() not in model.functions and not _known(node.domain, node.op_type, version):
            unknown.setdefault((node.domain, node.op_type, version), []).append(node.name or "?")
    if unknown:
        raise UnsupportedError.of([_problem(place, *key, names) for key, names in unknown.items()])
    found = problems(model, inference=False)
    if found:
        fix = "export the model again"
        raise ModelError.of([Problem(f"{place}: {p.place}", p.fact, p.fix or fix) for p in found])


def _problem(place: str, domain: str, op_type: str, version: int, names: Sequence[str]) -> Problem:
    shown = ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
    count = f"{len(names)} node{'s' if len(names) > 1 else ''}"
    if domain in STANDARD_DOMAINS:
        fact = f"is no operator of {domain or 'ai.onnx'} opset {version}, used by {count} ({shown})"
        return Problem(f"{place}: {op_type}", fact, "export with operators of the declared opset")
    fact = f"is unknown to ONNX Runtime, used by {count} ({shown})"
    fix = "export it as standard operators, or as a function in the model"
    return Problem(f"{place}: {domain}::{op_type}", fact, fix)


def _known(domain: str, op_type: str, version: int) -> bool:
    if domain in STANDARD_DOMAINS or signature(domain, op_type, version) is not None:
        return signature(domain, op_type, version) is not None
    return (domain, op_type) in _runtime_operators()


def _runtime_operators() -> Iterable[tuple[str, str]]:
    """Operators that ONNX Runtime registers; empty if it is not installed."""
    try:
        state = require("onnxruntime.capi.onnxruntime_pybind11_state", extra="cpu")
    except ToolError:
        return set()
    return {(schema.domain, schema.name) for schema in state.get_all_operator_schema()}
