"""What a model file must satisfy before the IR may read it: imports, names defined once, uses defined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ...compiler.errors import ModelError, Problem
from .fields import attribute_problems, text_problem

if TYPE_CHECKING:
    import onnx


def check_structure(proto: onnx.ModelProto, place: str) -> None:
    """Refuse a model whose graph does not say what it computes. Raises: ModelError with every problem."""
    text = text_problem(proto)
    if text is not None:
        raise ModelError(place, f"is damaged: {text}", "download or export it again")
    found = [
        Problem(f"{place}: {where}" if where else place, fact, fix) for where, fact, fix in _model(proto)
    ]
    if found:
        raise ModelError.of(found)


_Finding = tuple[str, str, str]
_AGAIN = "export the model again"


def _model(proto: onnx.ModelProto) -> Iterator[_Finding]:
    import onnx

    if not proto.opset_import:
        if proto.ir_version >= 3:
            yield "", "imports no opset", _AGAIN
        else:
            proto.opset_import.add(domain="", version=1)  # what IR versions 1 and 2 mean
    newest = onnx.defs.onnx_opset_version()
    versions: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
        where = f"opset import {domain or 'ai.onnx'!r}"
        if not 1 <= entry.version < 2**31:
            yield where, f"has version {entry.version}", _AGAIN
        elif domain == "" and entry.version > newest:
            yield where, f"has version {entry.version}, onnx here knows up to {newest}", "pip install -U onnx"
        if versions.setdefault(domain, entry.version) != entry.version:
            yield where, "is declared twice with different versions", _AGAIN
    if not proto.graph.output:
        yield "", "has no outputs", "export the model with its outputs declared"
    yield from _graph(proto.graph, frozenset(), "", frozenset())
    names = set()
    for function in proto.functions:
        key = (function.domain, function.name, getattr(function, "overload", ""))
        where = f"function {function.domain}::{function.name}"
        if key in names:
            yield where, "is defined twice", _AGAIN
        names.add(key)
        parameters = frozenset((*function.attribute, *(a.name for a in function.attribute_proto)))
        yield from _names(function.input, function.node, function.output, frozenset(), where, parameters)


def _graph(
    graph: onnx.GraphProto, outer: frozenset[str], where: str, parameters: frozenset[str]
) -> Iterator[_Finding]:
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
    yield from _names(defined, graph.node, [value.name for value in graph.output], outer, where, parameters)


def _names(
    defined: Iterable[str],
    nodes: Iterable[onnx.NodeProto],
    outputs: Sequence[str],
    outer: frozenset[str],
    where: str,
    parameters: frozenset[str],
) -> Iterator[_Finding]:
    prefix = f"{where}: " if where else ""
    produced: dict[str, str] = dict.fromkeys(defined, "an input or initializer")
    for node in nodes:
        for name in node.output:
            if name and name in produced:
                fact = f"defines {name!r}, already defined by {produced[name]}"
                yield f"{prefix}{_call(node)}", fact, _AGAIN
            produced.setdefault(name, _call(node))
    known = outer | frozenset(produced)
    for node in nodes:
        for name in dict.fromkeys(node.input):
            if name and name not in known:
                yield f"{prefix}{_call(node)}", f"reads {name!r}, which nothing defines", _AGAIN
        for fact in attribute_problems(node, parameters):
            yield f"{prefix}{_call(node)}", fact, _AGAIN
        for attribute in node.attribute:
            inside = f"{prefix}{_call(node)} {attribute.name}"
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graph(graph, known, inside, parameters)
    for name in dict.fromkeys(outputs):
        if name not in known:
            yield f"{prefix}output {name!r}", "is defined by nothing", _AGAIN
    for name in _repeated(outputs):
        yield f"{prefix}output {name!r}", "is declared twice", _AGAIN


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _call(node: onnx.NodeProto) -> str:
    return f"node {node.name!r} ({node.op_type})"
