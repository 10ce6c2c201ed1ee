"""Meshes that a network can be cut for, and the layers of each stage."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache

from ..errors import OptionError, Problem
from ..parallel.mesh import Mesh
from .network import Network


def meshes(network: Network, devices: int, replicas: int | None = None) -> Iterator[Mesh]:
    """Meshes of at most ``devices`` that the network can be cut for, whether or not they fit memory.

    All sizes of stages and ranks; of replicas powers of two and the most there can be, which ``replicas``
    bounds: each is as good as the other.

    >>> network = Network("x", "graph", 1, 8, 0, 0, 0, 0, 0, 0, 1.0)
    >>> [mesh.dp for mesh in meshes(network, 7)]
    [1, 2, 4, 7]
    """
    for tp in possible_tp(network, devices):
        for pp in range(1, min(devices // tp, network.layers) + 1):
            most = devices // (tp * pp) if replicas is None else min(devices // (tp * pp), replicas)
            for dp in sorted({*(2**power for power in range(most.bit_length())), most}):
                yield Mesh(dp, pp, tp)


def possible_tp(network: Network, most: int) -> list[int]:
    """Sizes up to ``most`` that give all ranks equal heads and channels; key heads may be repeated evenly."""
    return [tp for tp in range(1, most + 1) if _divides(network, tp)]


def _divides(network: Network, tp: int) -> bool:
    if tp == 1:
        return True
    if not network.heads or network.heads % tp or (not network.experts and network.inner % tp):
        return False
    if network.experts and network.experts % tp:
        return False
    return network.kv_heads % tp == 0 or tp % network.kv_heads == 0


def check(network: Network, mesh: Mesh, devices: int) -> None:
    """Refuse a mesh that the user asked for and that can't be. Raises: OptionError listing all reasons."""
    wrong = []
    if not _divides(network, mesh.tp):
        fact = f"{network.name} has no attention heads to share"
        if network.heads:
            parts = f"{network.heads} heads, {network.kv_heads} key heads and "
            parts += f"{network.experts} experts" if network.experts else f"{network.inner} channels"
            fact = f"{network.name} has {parts}, which it does not divide"
        possible = possible_tp(network, max(network.heads, 1))
        wrong.append(Problem(f"--tp {mesh.tp}", fact, f"give {_nearest(mesh.tp, possible)}"))
    if mesh.pp > network.layers:
        fact = f"{network.name} has {network.layers} layers, and a stage has one at least"
        wrong.append(Problem(f"--pp {mesh.pp}", fact, f"give at most {network.layers}"))
    if mesh.size > devices:
        fact = f"{told(mesh)} takes {mesh.size}"
        wrong.append(Problem(f"--devices {devices}", fact, f"give {mesh.size} devices, or a smaller mesh"))
    if wrong:
        raise OptionError.of(wrong)


def told(mesh: Mesh) -> str:
    """A mesh in words.

    >>> told(Mesh(2, 1, 4)), told(Mesh())
    ('dp 2 · tp 4', 'one device')
    """
    sizes = (("dp", mesh.dp), ("pp", mesh.pp), ("tp", mesh.tp))
    return " · ".join(f"{name} {size}" for name, size in sizes if size > 1) or "one device"


def _nearest(wanted: int, possible: list[int]) -> str:
    below = max((p for p in possible if p < wanted), default=None)
    above = min((p for p in possible if p > wanted), default=None)
    return " or ".join(str(p) for p in (below, above) if p is not None)


@cache
def stage_layers(network: Network, pp: int) -> tuple[int, ...]:
    """Layers of each stage: the slowest is as fast as can be when the last makes the logits too.

    >>> stage_layers(Network("x", "decoder", 8, 8, 1, 1, 8, 16, 8, 8, 1.0, head=2.0), 3)
    (3, 3, 2)
    """
    if pp == 1:
        return (network.layers,)
    head = network.head / max(network.dense + network.active * network.expert, 1.0)

    def slowest(last: int) -> float:
        return max(last + head, math.ceil((network.layers - last) / (pp - 1)))

    last = min(range(1, network.layers - pp + 2), key=lambda n: (slowest(n), -n))
    rest, extra = divmod(network.layers - last, pp - 1)
    return (*(rest + (i < extra) for i in range(pp - 1)), last)
