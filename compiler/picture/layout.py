"""Layered layout of an acyclic graph: ranks, order within a rank, x coordinates, routes of long arrows.

Source: Sugiyama, Tagawa, Toda, Methods for Visual Understanding of Hierarchical System Structures, 1981.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import networkx as nx

from .columns import columns

COLUMN_GAP = 26.0
ROW_GAP = 50.0
SWEEPS = 16

Point: TypeAlias = tuple[float, float]
Node: TypeAlias = int
"""Ids of boxes are 0, 1, …; bends of long arrows get the numbers after them."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Space a box takes left and right of its centre (px), and its height (px)."""

    left: float
    right: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """``centres``: of each box; ``bends``: points of each arrow between its two ends, a pair per rank."""

    centres: list[Point]
    bends: list[list[Point]]
    width: float
    height: float


def layered(extents: Sequence[Extent], arrows: Sequence[tuple[Node, Node, int]]) -> Layout:
    """Place boxes; an arrow is (tail, head, output number): arrows of one output share their bends."""
    ranks = _ranks(len(extents), arrows)
    bends: dict[tuple[Node, int, int], Node] = {}
    sizes = list(extents)
    rank_of = list(ranks)
    links: dict[tuple[Node, Node], None] = {}
    chains: list[list[Node]] = []
    for tail, head, port in arrows:
        chain: list[Node] = []
        for rank in range(ranks[tail] + 1, ranks[head]):
            key = (tail, port, rank)
            if key not in bends:
                bends[key] = len(sizes)
                sizes.append(Extent(6, 6, 0))
                rank_of.append(rank)
            chain.append(bends[key])
        chains.append(chain)
        path = [tail, *chain, head]
        links.update(dict.fromkeys(pairwise(path)))
    rows: list[list[Node]] = [[] for _ in range(max(rank_of, default=-1) + 1)]
    for node, rank in enumerate(rank_of):
        rows[rank].append(node)
    above, below = _neighbours(links)
    rows = _order(rows, above, below)
    x = columns(rows, above, below, [(s.left, s.right) for s in sizes], len(extents), COLUMN_GAP)
    heights = [max((sizes[n].height for n in row), default=0.0) for row in rows]
    tops = [sum(heights[:i]) + ROW_GAP * i for i in range(len(rows))]
    shift = min((x[n] - sizes[n].left for n in range(len(sizes))), default=0.0)
    centres = [(x[n] - shift, tops[rank_of[n]] + heights[rank_of[n]] / 2) for n in range(len(extents))]
    routes = [
        [(x[n] - shift, y) for n in chain for y in (tops[rank_of[n]], tops[rank_of[n]] + heights[rank_of[n]])]
        for chain in chains
    ]
    width = max((x[n] - shift + sizes[n].right for n in range(len(sizes))), default=0.0)
    return Layout(centres, routes, width, tops[-1] + heights[-1] if rows else 0.0)


def _ranks(count: int, arrows: Iterable[tuple[Node, Node, int]]) -> list[int]:
    """Longest path from the sources; boxes with no more inputs than outputs sink towards their readers."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    graph.add_edges_from((tail, head) for tail, head, _ in arrows)
    ranks = {n: rank for rank, generation in enumerate(nx.topological_generations(graph)) for n in generation}
    for node in reversed(list(nx.lexicographical_topological_sort(graph))):
        readers = [ranks[s] for s in graph.successors(node)]
        if readers and graph.in_degree(node) <= graph.out_degree(node):
            ranks[node] = min(readers) - 1
    used = {rank: i for i, rank in enumerate(sorted(set(ranks.values())))}
    return [used[ranks[n]] for n in range(count)]


Links: TypeAlias = dict[Node, list[Node]]


def _neighbours(links: Iterable[tuple[Node, Node]]) -> tuple[Links, Links]:
    above: Links = defaultdict(list)
    below: Links = defaultdict(list)
    for a, b in links:
        above[b].append(a)
        below[a].append(b)
    return above, below


def _order(rows: list[list[Node]], above: Links, below: Links) -> list[list[Node]]:
    """Barycentre sweeps, down and up; the order with the fewest crossings wins."""
    best, fewest = [list(row) for row in rows], _crossings(rows, below)
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 0
        side = above if downwards else below
        sequence = range(1, len(rows)) if downwards else range(len(rows) - 2, -1, -1)
        for i in sequence:
            place = {n: p for p, n in enumerate(rows[i - 1 if downwards else i + 1])}
            centre = {
                n: sum(place[m] for m in side[n]) / len(side[n]) if side[n] else float(p)
                for p, n in enumerate(rows[i])
            }
            rows[i].sort(key=centre.__getitem__)
        if (count := _crossings(rows, below)) < fewest:
            best, fewest = [list(row) for row in rows], count
        if not fewest:
            break
    return best


def _crossings(rows: Sequence[Sequence[Node]], below: Links) -> int:
    total = 0
    for upper, lower in pairwise(rows):
        place = {n: p for p, n in enumerate(lower)}
        seen: list[int] = []
        for node in upper:
            ends = sorted(place[m] for m in below[node])
            total += sum(len(seen) - bisect_left(seen, end + 1) for end in ends)
            for end in ends:
                insort(seen, end)
    return total
