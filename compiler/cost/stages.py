"""Contiguous pipeline stages: cuts of an ordered list of nodes that make the slowest stage fastest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import OptionError
from ..reference import Array


@dataclass(frozen=True, slots=True)
class Chain:
    """Nodes in topological order. ``seconds``, ``memory`` (bytes kept): float[nodes]. ``live``:
    float[nodes + 1], bytes that a cut in front of each node has to move.
    """

    seconds: Array
    memory: Array
    live: Array


@dataclass(frozen=True, slots=True)
class Link:
    """Between stages: seconds a transfer takes at least, and bytes a second."""

    latency: float = 20e-6
    bandwidth: float = 10e9


def stage_bounds(
    chain: Chain,
    stages: int,
    link: Link | None = None,
    limits: Sequence[float] | None = None,
    speeds: Sequence[float] | None = None,
) -> list[int]:
    """Where each stage begins, and the end: ``stages + 1`` positions, none the same.

    A stage's time is its nodes' over its device's ``speeds`` and that of receiving what is live at its cut;
    of all cuts the one whose slowest stage is fastest is taken, exactly, by dynamic programming over
    (stage, end). ``limits``: bytes that each stage's device holds.

    Raises: OptionError if there are more stages than nodes, or no cut fits the memory.
    """
    count = len(chain.seconds)
    if stages > count:
        fact = f"{stages} stages for {count} nodes: a stage has one at least"
        raise OptionError("--pp", fact, f"use at most {count}")
    link = Link() if link is None else link
    receive = np.where(chain.live > 0, link.latency + chain.live / link.bandwidth, 0.0)
    receive[0] = 0.0
    time, held = (np.concatenate([[0.0], np.cumsum(a)]) for a in (chain.seconds, chain.memory))
    work = time[None, :] - time[:, None]
    bytes_kept = held[None, :] - held[:, None]
    empty = np.tri(count + 1, dtype=bool)
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    cuts = []
    for stage in range(stages):
        cost = work / (1.0 if speeds is None else speeds[stage]) + receive[:, None]
        cost[empty] = np.inf
        if limits is not None:
            cost[bytes_kept > limits[stage]] = np.inf
        slowest = np.maximum(best[:, None], cost)
        chosen = slowest.argmin(0)
        cuts.append(chosen)
        best = slowest[chosen, np.arange(count + 1)]
    if not np.isfinite(best[count]):
        if limits is None:
            fact = f"there are fewer than {stages - 1} places to cut: a state tensor stays in one stage"
            raise OptionError("--pp", fact, "use fewer stages")
        fact = f"the weights, {held[-1] / 2**20:.0f} MiB, fit no {stages} stages of the memory given"
        raise OptionError("--pp", fact, "use more stages, or devices with more memory")
    bounds = [count]
    for chosen in reversed(cuts):
        bounds.append(int(chosen[bounds[-1]]))
    return bounds[::-1]
