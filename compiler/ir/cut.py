"""Cutting a program into segments that run one after the other, by the owner of each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import onnx_ir as ir

from ..program import Program
from .check_structure import subgraphs

Owner = TypeVar("Owner", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Segment(Generic[Owner]):
    """A stretch of an entry whose nodes have one owner; ``program`` holds it as its ``main``.

    Its inputs are the entry's that it reads and what earlier segments compute, its outputs what later ones
    read and what the entry gives; all have the names, dtypes and shapes they have in the whole.
    """

    owner: Owner
    program: Program


def cut(program: Program, owner: Callable[[ir.Node], Owner], entry: str = "main") -> list[Segment[Owner]]:
    """The entry as segments that give, run in order, what it gives. ``program`` stays as it is.

    There is one segment for each owner if what the owners have can be run owner by owner; else, of the orders
    that always go on with an owner as far as possible, one with fewest segments is taken. Weights are shared
    between segments; nodes keep their names and sources. An output of the entry that is one of its inputs is
    an output of no segment; a weight that is one is the last segment's.
    """
    model = program.entries[entry]
    stretches = _ordered(list(model.graph), owner)
    last = {value: index for index, (_, nodes) in enumerate(stretches) for n in nodes for value in reads(n)}
    outputs = set(model.graph.outputs)
    found = []
    for index, (name, nodes) in enumerate(stretches):
        made = [
            value
            for node in nodes
            for value in node.outputs
            if value in outputs or last.get(value, index) > index
        ]
        if index == len(stretches) - 1:
            made += [v for v in dict.fromkeys(model.graph.outputs) if v.name in model.graph.initializers]
        found.append(Segment(name, _program(program, model, nodes, made)))
    return found


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads from outside itself, its subgraphs' reads too; at times more than once."""
    yield from (value for value in node.inputs if value is not None)
    for graph in subgraphs(node):
        own = {*graph.inputs, *graph.initializers.values()}
        own |= {value for inner in graph for value in inner.outputs}
        yield from (value for inner in graph for value in reads(inner) if value not in own)
        yield from (value for value in graph.outputs if value not in own)


Stretch = tuple[Owner, list[ir.Node]]


def _ordered(nodes: Sequence[ir.Node], owner: Callable[[ir.Node], Owner]) -> list[Stretch[Owner]]:
    """A topological order in few stretches of one owner each."""
    graph = _Graph(nodes, {node: owner(node) for node in nodes})
    best: list[Stretch[Owner]] = []
    for first in graph.ready(graph.waiting):
        found = graph.schedule(first)
        if not best or len(found) < len(best):
            best = found
    return best


class _Graph(Generic[Owner]):
    """Nodes with their owners; ``waiting``: how many producers each waits for, by its place."""

    def __init__(self, nodes: Sequence[ir.Node], owners: Mapping[ir.Node, Owner]) -> None:
        self.nodes = nodes
        self.owners = [owners[node] for node in nodes]
        places = {node: place for place, node in enumerate(nodes)}
        self.readers: list[list[int]] = [[] for _ in nodes]
        self.waiting = [0] * len(nodes)
        for place, node in enumerate(nodes):
            producers = {places[p] for v in reads(node) if (p := v.producer()) is not None and p in places}
            self.waiting[place] = len(producers)
            for producer in producers:
                self.readers[producer].append(place)

    def ready(self, waiting: Sequence[int]) -> dict[Owner, list[int]]:
        """Places of the nodes that wait for none, by owner; those of nodes that ran are -1."""
        found: dict[Owner, list[int]] = {}
        for place, count in enumerate(waiting):
            if count == 0:
                found.setdefault(self.owners[place], []).append(place)
        return found

    def schedule(self, first: Owner) -> list[Stretch[Owner]]:
        """Stretches that begin with ``first``; then an owner that can end, else one that comes furthest."""
        waiting, left = list(self.waiting), Counter(self.owners)
        starts = self.ready(waiting)
        found: list[Stretch[Owner]] = []
        chosen = first
        while True:
            run, freed = self.run(waiting, starts.pop(chosen))
            for place in run:
                waiting[place] = -1
            for place, count in freed.items():
                waiting[place] = count
                if count == 0:
                    starts.setdefault(self.owners[place], []).append(place)
            left[chosen] -= len(run)
            found.append((chosen, [self.nodes[place] for place in sorted(run)]))
            if not starts:
                return found
            if len(starts) == 1:
                chosen = next(iter(starts))
                continue
            reach = {name: len(self.run(waiting, places)[0]) for name, places in starts.items()}
            chosen = max(
                starts, key=lambda name: (reach[name] == left[name], reach[name], -min(starts[name]))
            )

    def run(self, waiting: Sequence[int], starts: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        """Places that an owner can run from ``starts`` on, and what other nodes wait for afterwards."""
        run: list[int] = []
        freed: dict[int, int] = {}
        pending = list(starts)
        chosen = self.owners[starts[0]]
        while pending:
            place = pending.pop()
            run.append(place)
            for reader in self.readers[place]:
                count = freed[reader] = freed.get(reader, waiting[reader]) - 1
                if count == 0 and self.owners[reader] == chosen:
                    del freed[reader]
                    pending.append(reader)
        return run, freed


def _program(
    program: Program, model: ir.Model, nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]
) -> Program:
    """The nodes as a program of their own, over the same weights."""
    initializers = model.graph.initializers
    inner = {value for node in nodes for value in node.outputs}
    outer = dict.fromkeys(v for node in nodes for v in reads(node) if v not in inner)
    weights = [v for v in (*outer, *outputs) if v.name in initializers]
    graph = ir.GraphView(
        [value for value in outer if value.name not in initializers],
        outputs,
        nodes=nodes,
        initializers=list(dict.fromkeys(weights)),
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    ).clone()
    functions = [function.clone() for function in model.functions.values()]
    copy = ir.Model(graph, ir_version=model.ir_version, functions=functions)
    copy.metadata_props.update(model.metadata_props)
    values = {str(v.name) for v in inner}
    layers = {layer: name for layer, name in program.layers.items() if name in values}
    dims = dict(program.dims)
    return replace(
        program, entries={"main": copy}, dims=dims, layers=layers, call=None, assets={}, decoding=None
    )
