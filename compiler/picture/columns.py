"""x coordinates of a layered graph with fixed order: long arrows straight, boxes near their neighbours.

Source: Brandes, Köpf, Fast and Simple Horizontal Coordinate Assignment, 2001: align towards each of the four
corners, compact, take the mean of the two middle results.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise

Rows = Sequence[Sequence[int]]
Neighbours = Mapping[int, Sequence[int]]
Sides = Sequence[tuple[float, float]]


def columns(
    rows: Rows, above: Neighbours, below: Neighbours, sides: Sides, boxes: int, gap: float
) -> list[float]:
    """x of every node; ``sides``: its room left and right of x; nodes from number ``boxes`` on are bends."""
    crossed = _conflicts(rows, above, boxes)
    candidates: list[list[float]] = []
    for down in (True, False):
        for leftwards in (True, False):
            turned = [row[:: 1 if leftwards else -1] for row in (rows if down else rows[::-1])]
            room = sides if leftwards else [(right, left) for left, right in sides]
            root = _align(turned, above if down else below, crossed)
            x = _compact(turned, root, room, gap)
            candidates.append(x if leftwards else [-value for value in x])
    extents = [
        (
            min(v - s[0] for v, s in zip(x, sides, strict=True)),
            max(v + s[1] for v, s in zip(x, sides, strict=True)),
        )
        for x in candidates
    ]
    low, high = min(extents, key=lambda e: e[1] - e[0])
    for i, x in enumerate(candidates):
        shift = low - extents[i][0] if i % 2 == 0 else high - extents[i][1]
        candidates[i] = [value + shift for value in x]
    return [sum(sorted(values)[1:3]) / 2 for values in zip(*candidates, strict=True)]


def _conflicts(rows: Rows, above: Neighbours, boxes: int) -> set[tuple[int, int]]:
    """Segments that cross an inner segment of a long arrow: they give way, it stays straight."""
    crossed: set[tuple[int, int]] = set()
    for upper, lower in pairwise(rows):
        place = {n: i for i, n in enumerate(upper)}
        inner = [
            (place[a], i) for i, n in enumerate(lower) if n >= boxes for a in above.get(n, ()) if a >= boxes
        ]
        for i, node in enumerate(lower):
            for other in above.get(node, ()):
                if node >= boxes and other >= boxes:
                    continue
                if any((place[other] - a) * (i - b) < 0 for a, b in inner):
                    crossed.add((other, node))
    return crossed


def _align(rows: Rows, side: Neighbours, crossed: set[tuple[int, int]]) -> dict[int, int]:
    """Chain every node to a median neighbour of the row before, crossing no earlier chain; node → root."""
    root = {node: node for row in rows for node in row}
    taken: set[int] = set()
    for previous, row in pairwise(rows):
        place = {n: i for i, n in enumerate(previous)}
        reached = -1
        for node in row:
            near = sorted(side.get(node, ()), key=place.__getitem__)
            middle = (len(near) - 1) / 2
            for other in near[int(middle) : int(middle + 0.5) + 1]:
                free = (other, node) not in crossed and (node, other) not in crossed
                if root[node] == node and other not in taken and free and reached < place[other]:
                    root[node] = root[other]
                    taken.add(other)
                    reached = place[other]
    return root


def _compact(rows: Rows, root: Mapping[int, int], sides: Sides, gap: float) -> list[float]:
    """Place every chain as far left as its left neighbours allow, then as far right as its right ones ask."""
    left: dict[int, dict[int, float]] = defaultdict(dict)
    right: dict[int, dict[int, float]] = defaultdict(dict)
    for row in rows:
        for a, b in pairwise(row):
            distance = sides[a][1] + sides[b][0] + gap
            left[root[b]][root[a]] = max(distance, left[root[b]].get(root[a], 0.0))
            right[root[a]][root[b]] = left[root[b]][root[a]]
    order = _topological(dict.fromkeys(root.values()), left, right)
    x: dict[int, float] = {}
    for chain in order:
        x[chain] = max((x[a] + d for a, d in left[chain].items()), default=0.0)
    for chain in reversed(order):
        if right[chain]:
            x[chain] = max(x[chain], min(x[b] - d for b, d in right[chain].items()))
    return [x[root[node]] for node in range(len(sides))]


def _topological(
    chains: Mapping[int, None], left: Mapping[int, dict[int, float]], right: Mapping[int, dict[int, float]]
) -> list[int]:
    waiting = {chain: len(left[chain]) for chain in chains}
    order = [chain for chain, count in waiting.items() if not count]
    for chain in order:
        for after in right[chain]:
            waiting[after] -= 1
            if not waiting[after]:
                order.append(after)
    return order
