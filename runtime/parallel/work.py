"""What travels through the ranks of a replica: a run of an entry, or a command about the state they keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ...compiler.errors import WorkerError
from ...compiler.reference import Arrays


@dataclass(frozen=True, slots=True)
class Use:
    """The state that a run continues: a session's rows ``start`` to ``stop``, read on ``side``."""

    session: int
    side: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Command:
    """What ranks are to do to a session; doing it twice is doing it once.

    ``load`` opens an entry. ``new`` begins a session of ``rows`` rows with room for ``capacity`` tokens each,
    ``grow`` makes more room, ``keep`` leaves the rows ``kept``, ``settle`` brings ``row`` from side ``other``
    to ``side``, ``drop`` ends the session. ``side``: where its past lies.
    """

    kind: Literal["load", "new", "grow", "keep", "settle", "drop"]
    entry: str
    session: int = 0
    rows: int = 0
    capacity: int = 0
    kept: tuple[int, ...] = ()
    side: int = 0
    row: int = 0
    other: int = 0


@dataclass(slots=True)
class Travel:
    """One shard's way of a run through all stages. ``error``: what went wrong on it; the rest does nothing.

    ``values``: what the ranks before gave, by name, in whatever form the executor hands arrays over.
    ``slot``: which of the places for runs under way it has; ``shard``: whose way it is. ``form``: runs that
    have the same take alike long, None if that is not known.
    """

    number: int
    entry: str
    slot: int
    shard: int
    values: dict[str, Any]
    use: Use | None = None
    command: Command | None = None
    error: Exception | None = None
    form: Any = None


@dataclass(slots=True)
class Status:
    """What a rank is at: the number of the run, and whether it idles, computes, or waits for its group."""

    number: int = 0
    phase: int = 0


IDLE, RUNNING, MEETING = range(3)


class PeerFailedError(WorkerError):
    """A collective that another rank of the group did not come to; that rank's own error says why."""


class Replica(Protocol):
    """All ranks of one replica, running. Calls may come from several threads.

    ``broken``: what went wrong with it, once it can't be used any more; a new one takes its place.
    """

    broken: WorkerError | None

    def at_once(self, entry: str, feeds: Arrays) -> Arrays | None:
        """Fetches of a run that is quicker done than handed over; None if it is to be started.

        Raises: whatever a rank raised.
        """
        ...

    def start(self, entry: str, feeds: Arrays, use: Use | None = None) -> int | None:
        """Begin a run; its number, None while as many are under way as there is room for."""
        ...

    def result(self, number: int, deadline: float) -> Arrays:
        """Fetches of a run, by name. ``deadline``: on the clock of ``time.monotonic``.

        Raises: WorkerError if a rank died or did not answer, whatever a rank raised.
        """
        ...

    def command(self, command: Command, deadline: float) -> None:
        """Have all ranks carry out ``command``, in order with runs. Raises: as ``result``."""
        ...

    def wait_for_room(self, deadline: float) -> None:
        """Return once ``start`` may have room again. Raises: WorkerError at the deadline."""
        ...

    def kill(self, reason: WorkerError) -> None:
        """End all ranks at once, whatever they are at; runs under way fail with ``reason``."""
        ...

    def close(self) -> None:
        """End all ranks."""
        ...
