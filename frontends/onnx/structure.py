"""What a model file must satisfy before the IR may read it: imports, names defined once, uses defined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...compiler.errors import ModelError, Problem

if TYPE_CHECKING:
    import onnx


def check_structure(proto: onnx.ModelProto, place: str) -> None:
    """Refuse a model whose graph does not say what it computes. Raises: ModelError with every problem."""
    found = [
        Problem(f"{place}: {where}" if where else place, fact, fix) for where, fact, fix in _model(proto)
    ]
    if found:
        raise ModelError.of(found)


_Finding = tuple[str, str, str]
_AGAIN = "export the model again"


def _model(proto: onnx.ModelProto) -> Iterator[_Finding]:
    if not proto.opset_import:
        if proto.ir_version >= 3:
            yield "", "imports no opset", _AGAIN
        else:
            proto.opset_import.add(domain="", version=1)  # what IR versions 1 and 2 mean
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if entry.version < 1:
            yield f"opset import {domain or 'ai.onnx'!r}", f"has version {entry.version}", _AGAIN
        if versions.setdefault(domain, entry.version) != entry.version:
            yield f"opset import {domain or 'ai.onnx'!r}", "is declared twice with different versions", _AGAIN
    if not proto.graph.output:
        yield "", "has no outputs", "export the model with its outputs declared"
    yield from _graph(proto.graph, frozenset())
    names = set()
    for function in proto.functions:
        key = (function.domain, function.name, getattr(function, "overload", ""))
        where = f"function {function.domain}::{function.name}"
        if key in names:
            yield where, "is defined twice", _AGAIN
        names.add(key)
        yield from _names(function.input, list(function.node), function.output, frozenset(), where)


def _graph(graph: onnx.GraphProto, outer: frozenset[str], where: str = "") -> Iterator[_Finding]:
    prefix = f"{where}: " if where else ""
    inputs = [value.name for value in graph.input]
    initializers = [tensor.name for tensor in graph.initializer]
    initializers += [tensor.values.name for tensor in graph.sparse_initializer]
    for kind, names in (("input", inputs), ("initializer", initializers)):
        for name in _repeated(names):
            yield f"{prefix}{kind} {name!r}", "is declared twice", _AGAIN
        if "" in names:
            yield f"{prefix}graph", f"has an {kind} without a name", _AGAIN
    defined = dict.fromkeys([*inputs, *initializers])
    yield from _names(defined, list(graph.node), [value.name for value in graph.output], outer, where)


def _names(
    defined: object, nodes: list[onnx.NodeProto], outputs: object, outer: frozenset[str], where: str
) -> Iterator[_Finding]:
    prefix = f"{where}: " if where else ""
    produced: dict[str, str] = dict.fromkeys(defined, "an input or initializer")  # type: ignore[call-overload]
    for node in nodes:
        for name in node.output:
            if name and name in produced:
                yield (
                    f"{prefix}{_call(node)}",
                    f"defines {name!r}, already defined by {produced[name]}",
                    _AGAIN,
                )
            produced.setdefault(name, _call(node))
    known = outer | frozenset(produced)
    for node in nodes:
        for name in dict.fromkeys(node.input):
            if name and name not in known:
                yield f"{prefix}{_call(node)}", f"reads {name!r}, which nothing defines", _AGAIN
        for attribute in node.attribute:
            inside = f"{prefix}{_call(node)} {attribute.name}"
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graph(graph, known, inside)
    for name in dict.fromkeys(outputs):  # type: ignore[call-overload]
        if name not in known:
            yield f"{prefix}output {name!r}", "is defined by nothing", _AGAIN
    for name in _repeated(list(outputs)):  # type: ignore[call-overload]
        yield f"{prefix}output {name!r}", "is declared twice", _AGAIN


def _repeated(names: list[str]) -> list[str]:
    seen: set[str] = set()
    return list(dict.fromkeys(n for n in names if n in seen or seen.add(n)))  # type: ignore[func-returns-value]


def _call(node: onnx.NodeProto) -> str:
    return f"node {node.name!r} ({node.op_type})"
