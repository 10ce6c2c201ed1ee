"""Memory of a rank: weights, activations, and how many sequences the rest caches."""

from __future__ import annotations

from dataclasses import dataclass

from .catalogue import GIB
from .load import Load
from .step import Cost

CACHE_SHARE = 0.9
"""Of what weights and activations leave, the cache gets this; serving engines keep as much."""

LEAST_TOKENS = 256
"""Tokens of a step that is not made smaller, and whose logits are made at a time."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the fullest rank; ``cache`` is what is left for keys and values, ``token`` what one takes.

    ``tokens``: the most it computes in a step. ``sequences``: how many of the length asked the whole replica
    holds at a time.
    """

    capacity: float
    weights: float
    activations: float
    reserve: float
    cache: float
    token: float
    tokens: int
    sequences: int

    @property
    def fits(self) -> bool:
        """Whether weights, activations and at least one sequence fit."""
        return self.sequences > 0

    @property
    def needed(self) -> float:
        """Bytes without any cache."""
        return self.weights + self.activations + self.reserve

    def __str__(self) -> str:
        held = f"{self.weights / GIB:.1f} GiB of weights, {self.activations / GIB:.1f} of activations"
        return f"{held}, {max(self.cache, 0.0) / GIB:.1f} for the cache, of {self.capacity / GIB:.1f}"


def memory_of(cost: Cost, load: Load) -> Memory:
    """Memory of a rank that serves ``load``; where it is tight, its steps take fewer tokens."""
    tokens = min(cost.stack.tokens, max(load.prompt, 1) * (load.concurrency or cost.stack.sequences))
    while True:
        found = _with_steps_of(tokens, cost, load)
        if found.fits or tokens <= LEAST_TOKENS:
            return found
        tokens = max(tokens // 2, LEAST_TOKENS)


def _with_steps_of(tokens: int, cost: Cost, load: Load) -> Memory:
    network, mesh = cost.network, cost.mesh
    count = max(cost.layers)
    layers = count * (network.dense / cost.shared + network.experts * network.expert / mesh.tp)
    ends = [network.embedding + (network.head if mesh.pp == 1 and not network.tied else 0.0)]
    if mesh.pp > 1:
        ends.append(network.head)
    weights = (layers + max(ends) / cost.shared) * cost.weight_bytes
    widest = 4 * network.hidden + 2 * network.inner * max(network.active, 1) / mesh.tp
    logits = min(tokens, LEAST_TOKENS) * network.vocabulary * 4 / cost.shared
    activations = tokens * widest * cost.hidden_bytes + logits
    capacity, reserve = cost.device.memory, cost.device.reserve
    left = capacity - reserve - weights - activations
    token = cost.cache_bytes * count
    each = network.attended(load.length) * token
    if each:
        sequences = int(max(left * CACHE_SHARE, 0.0) // each) * cost.spread
    else:
        sequences = 0 if left <= 0 else cost.stack.sequences * mesh.pp * cost.spread
    return Memory(capacity, weights, activations, reserve, left * CACHE_SHARE, token, tokens, sequences)
