"""Time of collectives and transfers: latency and bandwidth."""

from __future__ import annotations


def ring_all_reduce(size: float, ranks: int, bandwidth: float, latency: float) -> float:
    """Seconds to sum ``size`` bytes over a ring: 2(n−1) steps, each of a share 1/n.

    As long as a reduce-scatter and an all-gather, which it is made of.
    Source: Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, 2009.

    >>> ring_all_reduce(8e9, 4, 1e9, 0.5)
    15.0
    """
    if ranks == 1:
        return 0.0
    return 2 * (ranks - 1) * (latency + size / ranks / bandwidth)


def transfer(size: float, bandwidth: float, latency: float) -> float:
    """Seconds until ``size`` bytes have arrived.

    >>> transfer(1e9, 2e9, 0.25)
    0.75
    """
    return latency + size / bandwidth
