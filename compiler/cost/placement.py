"""Placement of a graph's nodes on stages, in any order that its edges allow: an integer program (HiGHS)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from ..errors import require
from ..reference import Array
from .stages import Link

UNITS, MOST = 48, 96
"""Units that are placed one by one: of a larger graph neighbours are joined until there are no more, if no
path then leaves a unit and returns. Graphs of which more than the second remain are left alone.
"""

GAP, TREE = 0.01, 200
"""The solver stops within this share of the best, or after so many nodes of its search: no clock decides."""


@dataclass(frozen=True, slots=True)
class Dag:
    """``seconds``, ``memory`` (bytes kept): float[nodes]. ``edges``: (producer, reader, bytes), producers
    before readers. ``together``: nodes that may not be parted.
    """

    seconds: Array
    memory: Array
    edges: Sequence[tuple[int, int, float]]
    together: Sequence[Sequence[int]] = ()


def slowest(dag: Dag, places: Sequence[int], stages: int, link: Link) -> float:
    """Seconds of the slowest stage: its nodes' and receiving what crosses the cut in front of it."""
    times = np.zeros(stages)
    np.add.at(times, np.asarray(places), dag.seconds)
    crossing = np.zeros(stages)
    for source, size in _sent(dag):
        readers = [places[b] for a, b, _ in dag.edges if a == source]
        crossing[places[source] + 1 : max(readers, default=0) + 1] += size
    times += np.where(crossing > 0, link.latency + crossing / link.bandwidth, 0.0)
    return float(times.max())


def placed(dag: Dag, stages: int, link: Link | None = None, limit: float | None = None) -> list[int] | None:
    """The stage of each node: no edge leads back, and the slowest stage is as fast as it can be.

    What crosses several cuts is handed on by every stage. ``limit``: bytes that a stage's device holds.
    None if there is none, or the graph is too interwoven to look for it.
    Raises: ToolError without scipy.
    """
    if stages == 1:
        return [0] * len(dag.seconds)
    owners = _joined(dag, stages)
    count = max(owners) + 1
    if not stages <= count <= MOST:
        return None
    found = _solved(_contracted(dag, owners), count, stages, Link() if link is None else link, limit)
    return None if found is None else [found[unit] for unit in owners]


def _sent(dag: Dag) -> list[tuple[int, float]]:
    """Each producer that others read, and its bytes: a value crosses a cut once, however many read it."""
    sizes: dict[int, float] = {}
    for source, _, size in dag.edges:
        sizes[source] = max(sizes.get(source, 0.0), size)
    return list(sizes.items())


def _joined(dag: Dag, stages: int) -> list[int]:
    """The unit of each node. Units keep the graph without cycles: who is joined has one neighbour there."""
    count = len(dag.seconds)
    parent = list(range(count))

    def unit(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for group in dag.together:  # with all that lies between them, or a path would leave the unit and return
        for node in range(min(group), max(group) + 1):
            parent[unit(node)] = unit(group[0])
    for most in (dag.seconds.sum() / (4 * stages), np.inf):
        while len({unit(node) for node in range(count)}) > UNITS:
            readers: dict[int, set[int]] = {}
            makers: dict[int, set[int]] = {}
            for a, b, _ in dag.edges:
                if unit(a) != unit(b):
                    readers.setdefault(unit(a), set()).add(unit(b))
                    makers.setdefault(unit(b), set()).add(unit(a))
            weight = np.zeros(count)
            np.add.at(weight, [unit(node) for node in range(count)], dag.seconds)
            pairs = sorted(
                (weight[a] + weight[b], a, b)
                for a, after in readers.items()
                for b in after
                if (len(after) == 1 or len(makers[b]) == 1) and weight[a] + weight[b] <= most
            )
            if not pairs:
                break
            taken: set[int] = set()
            for _, a, b in pairs:
                if (
                    not {a, b} & taken
                ):  # joined pairs of one round may not touch: the sets are of its beginning
                    around = readers.get(a, set()) | makers.get(a, set()) | readers.get(b, set())
                    taken |= around | makers.get(b, set()) | {a, b}
                    parent[b] = a
    names = {root: number for number, root in enumerate(dict.fromkeys(unit(n) for n in range(count)))}
    return [names[unit(node)] for node in range(count)]


def _contracted(dag: Dag, owners: Sequence[int]) -> Dag:
    count = max(owners) + 1
    seconds, memory = np.zeros(count), np.zeros(count)
    np.add.at(seconds, np.asarray(owners), dag.seconds)
    np.add.at(memory, np.asarray(owners), dag.memory)
    sizes = dict(_sent(dag))
    between: dict[tuple[int, int], dict[int, float]] = {}
    for a, b, _ in dag.edges:
        if owners[a] != owners[b]:
            between.setdefault((owners[a], owners[b]), {})[a] = sizes[a]
    edges = [(a, b, sum(values.values())) for (a, b), values in between.items()]
    return replace(dag, seconds=seconds, memory=memory, edges=edges, together=())


def _solved(dag: Dag, count: int, stages: int, link: Link, limit: float | None) -> list[int] | None:
    """The integer program. Of its variables ``behind[n, k]`` says whether unit n comes behind cut k,
    ``sent[s, k]`` whether the value of source s crosses it, ``busy[k]`` whether anything does; last comes the
    slowest stage's share of all seconds.
    """
    require("scipy", extra="plan")
    from scipy import optimize, sparse

    cuts, sources = stages - 1, _sent(dag)
    behind = np.arange(count * cuts).reshape(count, cuts)
    sent = behind.size + np.arange(len(sources) * cuts).reshape(len(sources), cuts)
    busy = behind.size + sent.size + np.arange(cuts)
    most, width = behind.size + sent.size + cuts, behind.size + sent.size + cuts + 1
    number = {source: place for place, (source, _) in enumerate(sources)}
    whole = max(float(dag.seconds.sum()), 1e-30)
    terms: list[tuple[Array, Array, float]] = []  # columns, factors, and the most their sum may be

    def bound(columns: Sequence[Array | int], factors: Sequence[Array | float], at_most: float) -> None:
        wide = [np.broadcast_to(f, np.shape(c)).ravel() for c, f in zip(columns, factors, strict=True)]
        terms.append((np.concatenate([np.ravel(c) for c in columns]), np.concatenate(wide), at_most))

    def of_stage(stage: int, amounts: Array) -> tuple[list[Array | int], list[Array | float], float]:
        """The sum of ``amounts`` of a stage's units: behind the cut before it, but not the next."""
        before: tuple[list[Array | int], list[Array | float]] = ([], [])
        if stage > 0:
            before = [behind[:, stage - 1]], [amounts]
        after = ([behind[:, stage]], [-amounts]) if stage < cuts else ([], [])
        return [*before[0], *after[0]], [*before[1], *after[1]], 0.0 if stage else float(amounts.sum())

    for a, b in pairwise(range(cuts)):
        for unit in range(count):
            bound([behind[unit, b], behind[unit, a]], [1.0, -1.0], 0.0)
    for maker, reader, _ in dag.edges:
        for k in range(cuts):
            value = sent[number[maker], k]
            bound([behind[maker, k], behind[reader, k]], [1.0, -1.0], 0.0)
            bound([behind[reader, k], behind[maker, k], value], [1.0, -1.0, -1.0], 0.0)
            bound([value, busy[k]], [1.0, -1.0], 0.0)
    sizes = np.array([size for _, size in sources])
    for stage in range(stages):
        columns, factors, fixed = of_stage(stage, dag.seconds / whole)
        if stage > 0:
            columns += [sent[:, stage - 1], busy[stage - 1]]
            factors += [sizes / link.bandwidth / whole, link.latency / whole]
        bound([*columns, most], [*factors, -1.0], -fixed)
        columns, factors, fixed = of_stage(stage, -np.ones(count))
        bound(columns, factors, -1.0 - fixed)  # a stage has a unit at least
        if limit is not None:
            columns, factors, fixed = of_stage(stage, dag.memory / limit)
            bound(columns, factors, 1.0 - fixed)
    rows = np.repeat(np.arange(len(terms)), [len(columns) for columns, _, _ in terms])
    entries = np.concatenate([factors for _, factors, _ in terms])
    places = rows, np.concatenate([columns for columns, _, _ in terms])
    table = sparse.csr_array((entries, places), shape=(len(terms), width))
    solved = optimize.milp(
        np.eye(width)[most],
        integrality=np.arange(width) < behind.size,
        bounds=optimize.Bounds(0.0, np.where(np.arange(width) == most, np.inf, 1.0)),
        constraints=optimize.LinearConstraint(table, -np.inf, np.array([term[2] for term in terms])),
        options={"mip_rel_gap": GAP, "node_limit": TREE},
    )
    if solved.x is None:
        return None
    return [int(row.sum()) for row in np.round(solved.x[behind])]
