"""Placement by an integer program equals trying everything, and is not bound to the listed order."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from miaotui.compiler.cost.placement import UNITS, Dag, placed, slowest
from miaotui.compiler.cost.stages import Link

LINK = Link(latency=0.05, bandwidth=10.0)


def random_dag(seed: int, count: int = 7) -> Dag:
    random = np.random.default_rng(seed)
    edges = [
        (a, b, float(size[a]))
        for size in [random.random(count) * 3]
        for a in range(count)
        for b in range(a + 1, count)
        if random.random() < 0.35
    ]
    return Dag(random.random(count) + 0.1, random.random(count), edges)


def allowed(dag: Dag, places: tuple[int, ...], stages: int, limit: float | None) -> bool:
    held = np.bincount(places, dag.memory, stages)
    return (
        set(places) == set(range(stages))
        and all(places[a] <= places[b] for a, b, _ in dag.edges)
        and (limit is None or float(held.max()) <= limit)
    )


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_equals_trying_everything(seed: int, stages: int) -> None:
    dag = random_dag(seed)
    limit = float(dag.memory.sum()) * 0.6 if seed % 2 else None
    every = [p for p in product(range(stages), repeat=7) if allowed(dag, p, stages, limit)]
    found = placed(dag, stages, LINK, limit)
    if not every:
        assert found is None
        return
    assert found is not None and allowed(dag, tuple(found), stages, limit)
    best = min(slowest(dag, p, stages, LINK) for p in every)
    assert slowest(dag, found, stages, LINK) <= best * 1.011


def test_two_branches_listed_in_turns_are_parted_without_crossing() -> None:
    edges = [(a, a + 2, 100.0) for a in range(18)]
    dag = Dag(np.ones(20), np.zeros(20), edges)
    found = placed(dag, 2, LINK)
    assert found in ([0, 1] * 10, [1, 0] * 10)
    in_order = [0] * 10 + [1] * 10
    assert slowest(dag, found, 2, LINK) == 10.0 and slowest(dag, in_order, 2, LINK) > 25


def test_what_belongs_together_stays_together_with_what_lies_between() -> None:
    edges = [(a, a + 1, 0.1) for a in range(9)]
    dag = Dag(np.ones(10), np.zeros(10), edges, together=[[3, 7]])
    found = placed(dag, 2, LINK)
    assert found is not None and len(set(found[3:8])) == 1


def test_large_graphs_are_joined_first_and_stay_near_the_bound() -> None:
    random = np.random.default_rng(0)
    layers, edges = 60, []
    for layer in range(layers):  # three branches that meet again
        first = 5 * layer
        edges += [(first, first + k, 1.0) for k in (1, 2, 3)] + [
            (first + k, first + 4, 1.0) for k in (1, 2, 3)
        ]
        edges += [(first + 4, first + 5, 1.0)] if layer + 1 < layers else []
    dag = Dag(random.random(5 * layers) + 0.5, np.zeros(5 * layers), edges)
    assert len(dag.seconds) > 4 * UNITS
    found = placed(dag, 4, Link(1e-3, 1e3))
    assert found is not None and all(found[a] <= found[b] for a, b, _ in edges)
    assert slowest(dag, found, 4, Link(1e-3, 1e3)) < 1.1 * dag.seconds.sum() / 4


def test_one_stage_and_more_than_there_are_units() -> None:
    dag = random_dag(0)
    assert placed(dag, 1) == [0] * 7 and placed(dag, 8) is None
