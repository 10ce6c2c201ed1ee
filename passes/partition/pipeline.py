"""Pipeline stages: every node annotated with the stage that runs it, stages of nearly equal time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ...compiler.cost import cpu, program_cost
from ...compiler.cost.placement import Dag, placed, slowest
from ...compiler.cost.stages import Chain, Link, stage_bounds
from ...compiler.errors import ToolError
from ...compiler.ir.cut import reads
from ...compiler.parallel.mesh import Mesh
from ...compiler.parallel.sharding import set_stage, stage
from ...compiler.program import Decoding, Program
from ..base import Note, Pass, PassContext, PassResult

UNEQUAL = 1.25
"""Times the least possible that the slowest stage may take before other placements are looked for."""


@dataclass(frozen=True)
class PipelineStages(Pass):
    """Put every node into one of ``stages`` stages of nearly equal time.

    Stages are stretches of the graph's order; where those are far from equal, as with branches that the order
    lists in turns, nodes are placed one by one instead, if that is better (``placement=order``: never).
    Modelled costs of the entry that is run most decide; a state tensor's reading and writing are never
    parted. Other entries follow: a node runs where its weights are, and behind what it reads.
    ``bandwidth``: bytes a second between stages; ``memory``: bytes of weights a stage may have, 0 for any.
    Raises: OptionError if there are more stages than nodes, or they don't fit.
    """

    name: ClassVar[str] = "pipeline-stages"
    optional: ClassVar[bool] = False

    stages: int = 2
    bandwidth: float = 10e9
    memory: float = 0.0
    placement: Literal["auto", "order"] = "auto"

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Annotate all entries."""
        first = "main" if program.decoding is None else program.decoding.entry
        nodes = list(program.entries[first].graph)
        limits = [self.memory] * self.stages if self.memory else None
        chain = chain_of(program, first)
        link = Link(bandwidth=self.bandwidth)
        bounds = stage_bounds(chain, self.stages, link, limits)
        places = [number for number, (a, b) in enumerate(pairwise(bounds)) for _ in range(a, b)]
        if self.placement == "auto":
            places = self._better(program, first, chain, places, link)
        for node, number in zip(nodes, places, strict=True):
            set_stage(node, number)
        homes = _homes(nodes)
        for entry, model in program.entries.items():
            if entry != first:
                _follow(list(model.graph), homes)
        mesh = program.mesh or Mesh()
        program.mesh = replace(mesh, pp=self.stages)
        times = np.bincount(places, chain.seconds, self.stages).tolist()
        balance = np.mean(times) / max(max(times), 1e-30)
        text = f"{self.stages} stages, balance {balance:.2f}"
        return PassResult(len(nodes), (Note(first, text, {"seconds": times}),))

    def _better(self, program: Program, entry: str, chain: Chain, places: list[int], link: Link) -> list[int]:
        """``places``, or those of an integer program, which is worth trying where they are far from equal."""
        dag = dag_of(program, entry, chain)
        before = slowest(dag, places, self.stages, link)
        bound = max(float(chain.seconds.sum()) / self.stages, float(chain.seconds.max(initial=0.0)))
        if before <= UNEQUAL * bound:
            return places
        try:
            found = placed(dag, self.stages, link, self.memory or None)
        except ToolError:  # the solver is not installed
            return places
        better = found is not None and slowest(dag, found, self.stages, link) < 0.95 * before
        return found if found is not None and better else places


def dag_of(program: Program, entry: str, chain: Chain) -> Dag:
    """An entry's nodes with what each hands to which; who reads and writes a state tensor stay together."""
    graph = program.entries[entry].graph
    places = {node: place for place, node in enumerate(graph)}
    edges = [
        (places[producer], place, _bytes(value))
        for node, place in places.items()
        for value in dict.fromkeys(reads(node))
        if (producer := value.producer()) is not None and producer in places
    ]
    kept = program.decoding if program.decoding is not None and program.decoding.entry == entry else None
    together = [] if kept is None else [ends for ends in _state_ends(graph, places, kept) if ends]
    return Dag(chain.seconds, chain.memory, edges, together)


def chain_of(program: Program, entry: str) -> Chain:
    """Cost of an entry's nodes in their order, weights where they are first read, bytes live at each cut."""
    graph = program.entries[entry].graph
    nodes = list(graph)
    device = cpu()
    rows = {row.node: row.seconds(device) for row in program_cost(program, entry=entry).rows}
    places = {node: place for place, node in enumerate(nodes)}
    memory, live = np.zeros(len(nodes)), np.zeros(len(nodes) + 1)
    last: dict[ir.Value, int] = {}
    seen: set[int] = set()
    for place, node in enumerate(nodes):
        for value in reads(node):
            last[value] = place
            tensor = value.const_value
            if value.is_initializer() and tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                memory[place] += tensor.nbytes
    for value, end in last.items():
        producer = value.producer()
        if producer is not None:
            live[places[producer] + 1 : end + 1] += _bytes(value)
    if program.decoding is not None and program.decoding.entry == entry:
        _keep_state_together(graph, places, live, program.decoding)
    seconds = np.array([rows.get(str(node.name), 0.0) for node in nodes])
    return Chain(seconds, memory, live)


def _keep_state_together(
    graph: ir.Graph, places: dict[ir.Node, int], live: np.ndarray, decoding: Decoding
) -> None:
    """No cut between who reads a state tensor and who writes it."""
    for ends in _state_ends(graph, places, decoding):
        if ends:
            live[min(ends) + 1 : max(ends) + 1] = np.inf


def _state_ends(graph: ir.Graph, places: dict[ir.Node, int], decoding: Decoding) -> Iterator[list[int]]:
    """Places of those who read each state tensor, and of who writes it."""
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    for kept in decoding.state:
        ends = [places[use.node] for use in inputs[kept.input].uses() if use.node in places]
        producer = outputs[kept.output].producer()
        yield [*ends, *([places[producer]] if producer in places else [])]


def _bytes(value: ir.Value) -> float:
    if value.shape is None or value.dtype is None:
        return 0.0
    sizes = [dim if isinstance(dim, int) else 16 for dim in value.shape]
    return float(np.prod(sizes)) * value.dtype.bitwidth / 8


def _homes(nodes: list[ir.Node]) -> dict[tuple[int, str], int]:
    """Stage of each weight, by who reads it: a table may be read by the first stage and the last."""
    return {
        (id(value.const_value), node.op_type): found
        for node in nodes
        for value in reads(node)
        if value.is_initializer() and (found := stage(node)) is not None
    }


def _follow(nodes: list[ir.Node], homes: dict[tuple[int, str], int]) -> None:
    for node in nodes:
        known = [homes.get((id(v.const_value), node.op_type), 0) for v in reads(node) if v.is_initializer()]
        known += [stage(p) or 0 for v in reads(node) if (p := v.producer()) is not None]
        set_stage(node, max(known, default=0))
