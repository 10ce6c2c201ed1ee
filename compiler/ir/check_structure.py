"""Structural invariants: names, definitions before uses, use lists, initializers, outputs, cycles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from ..errors import Problem

_Scopes = tuple[Mapping[str, ir.Value], ...]


def place(node: ir.Node) -> str:
    """How messages call a node: ``node 'conv1' (Conv)``."""
    return f"node {node.name!r} ({node.domain + '::' if node.domain else ''}{node.op_type})"


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs among the node's attributes (If, Loop, Scan)."""
    for attr in node.attributes.values():
        if not attr.is_ref() and attr.type == ir.AttributeType.GRAPH:
            yield attr.as_graph()
        elif not attr.is_ref() and attr.type == ir.AttributeType.GRAPHS:
            yield from attr.as_graphs()


def structure_problems(model: ir.Model) -> list[Problem]:
    """Violations in the model's graph, its subgraphs and its functions."""
    check = _Check()
    check.scope(model.graph, ())
    for function in model.functions.values():
        check.scope(function, ())
    check.use_lists()
    return check.found


class _Check:
    """One walk over a model; ``reads`` are the uses that nodes really make."""

    __slots__ = ("found", "reads")

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.reads: dict[ir.Value, set[tuple[ir.Node, int]]] = {}

    def report(self, where: str, fact: str) -> None:
        self.found.append(Problem(where, fact))

    def define(self, value: ir.Value, names: dict[str, ir.Value], where: str) -> None:
        self.reads.setdefault(value, set())
        if not value.name:
            self.report(where, "defines a value without a name")
        elif value.name in names:
            self.report(where, f"value name {value.name!r} is already taken in this graph")
        else:
            names[value.name] = value

    def scope(self, graph: ir.Graph | ir.Function, outer: _Scopes) -> None:
        names: dict[str, ir.Value] = {}
        for value in graph.inputs:
            self.define(value, names, "graph input")
        if isinstance(graph, ir.Graph):
            for key, value in graph.initializers.items():
                self.initializer(key, value)
                if not value.is_graph_input():
                    self.define(value, names, "initializer")
        node_names: set[str] = set()
        scopes = (names, *outer)
        members = set(graph)
        misordered = False
        for node in graph:
            where = place(node)
            if not node.name or node.name in node_names:
                self.report(where, "shares its name with another node" if node.name else "has no name")
            node_names.add(node.name or "")
            for index, read in enumerate(node.inputs):
                if read is None:
                    continue
                self.reads.setdefault(read, set()).add((node, index))
                if fact := _lookup_fault(read, scopes, members):
                    misordered |= read.producer() in members
                    self.report(where, f"input {index} ({read.name!r}) {fact}")
            for subgraph in subgraphs(node):
                self.scope(subgraph, scopes)
            for index, value in enumerate(node.outputs):
                if value.producer() is not node or value.index() != index:
                    self.report(where, f"output {index} ({value.name!r}) does not point back to its node")
                if value.name != "":  # an omitted output
                    self.define(value, names, where)
        self.outputs(graph, scopes)
        if misordered and (cycle := find_cycle(graph)):
            names_of = " -> ".join(str(n.name) for n in (*cycle, cycle[0]))
            self.report(f"graph {graph.name!r}", f"is cyclic: {names_of}")

    def initializer(self, key: str, value: ir.Value) -> None:
        where = f"initializer {key!r}"
        if value.name != key:
            self.report(where, f"is registered under another name than its own, {value.name!r}")
        if value.producer() is not None:
            self.report(where, "is also the output of a node")
        tensor = value.const_value
        if tensor is None:
            self.report(where, "has no data")
            return
        if value.dtype is not None and value.dtype != tensor.dtype:
            self.report(where, f"is declared {value.dtype.name}, its data is {tensor.dtype.name}")
        actual = tuple(tensor.shape)
        if value.shape is not None and not (
            len(value.shape) == len(actual)
            and all(not isinstance(d, int) or d == a for d, a in zip(value.shape, actual, strict=True))
        ):
            self.report(where, f"is declared {value.shape}, its data is {list(actual)}")

    def outputs(self, graph: ir.Graph | ir.Function, scopes: _Scopes) -> None:
        seen: set[str] = set()
        for value in graph.outputs:
            where, name = f"graph output {value.name!r}", value.name or ""
            if not any(scope.get(name) is value for scope in scopes):
                self.report(where, "is produced by nothing")
            if name in seen:
                self.report(where, "is an output twice")
            seen.add(name)

    def use_lists(self) -> None:
        for value, reads in self.reads.items():
            listed = {(use.node, use.idx) for use in value.uses()}
            for node, index in listed - reads:
                fact = "which is in no graph" if node.graph is None else "which does not read it there"
                self.report(f"value {value.name!r}", f"lists a use as input {index} of {place(node)}, {fact}")
            for node, index in reads - listed:
                self.report(place(node), f"input {index} ({value.name!r}) does not list this use")


def _lookup_fault(value: ir.Value, scopes: _Scopes, members: set[ir.Node]) -> str:
    for scope in scopes:
        seen = scope.get(value.name or "")
        if seen is value:
            return ""
        if seen is not None:
            return "is not what this name means in its scope"
    return (
        "is used before it is produced" if value.producer() in members else "is produced by nothing in scope"
    )


def find_cycle(graph: ir.Graph | ir.Function) -> list[ir.Node]:
    """Nodes of one cycle of ``graph``, each read by the next; empty if there is none."""
    done: set[ir.Node] = set()
    members = set(graph)
    for start in graph:
        path: dict[ir.Node, Iterator[ir.Node]] = {}
        node: ir.Node | None = None if start in done else start
        while node is not None:
            producers = path.setdefault(node, iter(node.predecessors()))
            step = next((p for p in producers if p in members and p not in done), None)
            if step is None:
                del path[node]
                done.add(node)
                node = next(reversed(path), None)
            elif step in path:
                nodes = list(path)
                return nodes[nodes.index(step) :][::-1]
            else:
                node = step
    return []
