"""The load: requests that a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of ``prompt`` tokens that get ``output`` tokens each; 0 of an encoder or a graph.

    ``concurrency``: at most so many at a time over all replicas, None for as many as memory holds.
    ``requests``: how many there are in all, queued at once; None for an endless supply.
    """

    prompt: int
    output: int
    concurrency: int | None = None
    requests: int | None = None

    @property
    def length(self) -> int:
        """Tokens of a finished request."""
        return self.prompt + self.output
