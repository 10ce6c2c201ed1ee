"""Collectives by exchange: each rank of a group gives its array to all others, and all compute the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np

from ...compiler.errors import WorkerError
from ...compiler.parallel.plan import Collective
from ...compiler.reference import Array
from .work import MEETING, RUNNING, PeerFailedError, Status

_FAILED = -1
"""In place of a collective's number: the rank failed in this run and comes to none."""


class Group(Protocol):
    """Ranks that meet in collectives."""

    def begin(self, number: int, meetings: int) -> None:
        """Before run ``number``, in which there are ``meetings`` collectives."""
        ...

    def meet(self, step: Collective, given: Array) -> Array:
        """What this rank gets for what it gives. Raises: PeerFailedError."""
        ...

    def abort(self, number: int) -> None:
        """Tell the others that this rank comes to no more collectives of run ``number``."""
        ...


class Alone:
    """The group of a rank whose stage has no other."""

    def begin(self, number: int, meetings: int) -> None:
        """Nothing to prepare."""

    def meet(self, step: Collective, given: Array) -> Array:
        """What it gives is the sum and the whole."""
        return given

    def abort(self, number: int) -> None:
        """Nobody waits."""


class ExchangeGroup(ABC):
    """A group of ``size`` ranks, of which this is number ``place``; channels to each keep their order.

    Messages carry the run's number, so that what a failed run left behind is passed over.
    """

    def __init__(self, place: int, size: int, status: Status) -> None:
        self._place, self._peers = place, [p for p in range(size) if p != place]
        self._status = status
        self._number = self._count = 0

    @abstractmethod
    def send(self, peer: int, tag: tuple[int, int], given: Array | None) -> None:
        """Hand ``given`` to ``peer``, who may read it until two collectives later."""

    @abstractmethod
    def receive(self, peer: int) -> tuple[tuple[int, int], Array | None]:
        """The next message of ``peer``."""

    def prepare(self, given: Array) -> Array:
        """``given`` in memory that peers can read."""
        return given

    def begin(self, number: int, meetings: int) -> None:
        """Before run ``number``, in which there are ``meetings`` collectives."""
        self._number, self._count = number, 0

    def meet(self, step: Collective, given: Array) -> Array:
        """What this rank gets for what it gives. Raises: PeerFailedError if another rank failed."""
        tag = self._number, self._count
        self._count += 1
        shared = self.prepare(given)
        for peer in self._peers:
            self.send(peer, tag, shared)
        self._status.phase = MEETING
        taken = {peer: self._take(peer, tag, step) for peer in self._peers}
        self._status.phase = RUNNING
        taken[self._place] = given
        return combined(step, [taken[place] for place in sorted(taken)], self._place)

    def abort(self, number: int) -> None:
        """Tell the others that this rank comes to no more collectives of run ``number``."""
        for peer in self._peers:
            with suppress(WorkerError):  # one that is gone need not be told
                self.send(peer, (number, _FAILED), None)

    def _take(self, peer: int, tag: tuple[int, int], step: Collective) -> Array:
        while True:
            found, array = self.receive(peer)
            if found == tag and array is not None:
                return array
            if found == (tag[0], _FAILED):
                raise PeerFailedError(f"collective {step.name!r}", f"shard {peer} failed before it came")


def combined(step: Collective, given: Sequence[Array], place: int) -> Array:
    """What rank ``place`` gets where the ranks of its group, in order, give ``given``.

    Sums run in the ranks' order at every rank, so that all hold the same bits; of 16-bit floats in 32 bits.
    """
    if step.op == "AllGather":
        return np.concatenate(given, step.dim)
    whole = _sum(given)
    if step.op == "AllReduce":
        return whole
    ends = np.cumsum(step.sizes)
    cut = [slice(None)] * whole.ndim
    cut[step.dim] = slice(int(ends[place]) - step.sizes[place], int(ends[place]))
    return np.ascontiguousarray(whole[tuple(cut)])


def _sum(given: Sequence[Array]) -> Array:
    first, *rest = given
    narrow = first.dtype.itemsize == 2 and first.dtype.kind not in "iu"
    total = first.astype(np.float32) if narrow else first + rest[0]
    for array in rest if narrow else rest[1:]:
        total += array
    return total.astype(first.dtype) if narrow else total
