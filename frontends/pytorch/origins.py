"""Where nodes come from: sources from the exporter's metadata, and the value each torch module computes."""

from __future__ import annotations

import ast
from typing import Any

import onnx_ir as ir

from ...compiler.ir.provenance import Source, set_sources, sources
from .translate import source_line

_EXPORTER = "pkg.torch."
ROOT = "module"
"""Name of the captured module inside the flat wrapper: the first part of every module path there."""


def set_torch_sources(model: ir.Model, framework: str) -> None:
    """A source (module path, operator, source line) for every node; the exporter's metadata is dropped."""
    for graph in [*model.graphs(), *model.functions.values()]:
        for node in graph:
            source = _source(node.metadata_props, framework)
            _strip(node)
            if source is not None:
                set_sources(node, [source])


def complete_sources(model: ir.Model) -> None:
    """Nodes that an optimization made without a source get their consumers', else their producers'."""
    for graph in model.graphs():
        for node in reversed(graph):
            if not sources(node):
                set_sources(node, [s for user in _users(node) for s in sources(user)])
        for node in graph:
            if not sources(node):
                made = [v.producer() for v in node.inputs if v is not None]
                set_sources(node, [s for p in made if p is not None for s in sources(p)])
            _strip(node)


def _users(node: ir.Node) -> list[ir.Node]:
    return [user for output in node.outputs for user, _ in output.uses()]


def _strip(node: ir.Node) -> None:
    for key in [k for k in node.metadata_props if k.startswith(_EXPORTER) or k == "namespace"]:
        del node.metadata_props[key]
    node.meta.clear()


def _source(metadata: dict[str, str], framework: str) -> Source | None:
    scopes, classes = (
        _literal(metadata.get(f"{_EXPORTER}onnx.{key}")) for key in ("name_scopes", "class_hierarchy")
    )
    if not scopes:
        return None
    layer = strip_root(scopes[-2]) if len(scopes) > 1 else ""
    line = source_line(metadata.get(f"{_EXPORTER}onnx.stack_trace", ""))
    return Source(framework, layer, classes[-1] if classes else "", line)


def _literal(text: str | None) -> list[str]:
    try:
        return [str(part) for part in ast.literal_eval(text or "[]")]
    except (ValueError, SyntaxError):
        return []


def strip_root(path: str) -> str:
    """A module path without the flat wrapper's own part; torch's stand-in for an unknown path is empty."""
    if path.startswith("_empty_nn_module_stack"):
        return ""
    return "" if path == ROOT else path.removeprefix(f"{ROOT}.")


def module_outputs(exported: Any) -> dict[str, str]:
    """Module path → fx node of its only output tensor; the second call of a module is ``path@1``.

    A module with several tensors read outside of it is left out: which one is its output is not recorded.
    """
    import torch

    inside: dict[str, set[Any]] = {}
    order: dict[str, list[Any]] = {}
    for node in exported.graph.nodes:
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            name = strip_root(path)
            if name and node.op == "call_function":
                name += key[key.rindex("@") :] if "@" in key.rpartition(".")[2] else ""
                inside.setdefault(name, set()).add(node)
                order.setdefault(name, []).append(node)
    found = {}
    for name, nodes in order.items():
        leaving = [
            n
            for n in nodes
            if isinstance(n.meta.get("val"), torch.Tensor) and not inside[name].issuperset(n.users)
        ]
        if len(leaving) == 1:
            found[name] = leaving[0].name
    return found
