"""Memory of a run: values that are never alive together share a buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .emit.base import Size, factors

_USUAL = 64
"""What a named size is taken for when buffers are compared."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A value in memory: alive from step ``first``, which writes it, to step ``last``, both included.

    ``over``: another value whose memory it may take although step ``first`` reads that; of several that may,
    one does.
    """

    size: Size
    ctype: str
    first: int
    last: int
    over: int | None = None


@dataclass(slots=True)
class Slot:
    """A buffer: elements of ``ctype``, as many as the largest of ``sizes``."""

    ctype: str
    sizes: list[Size] = field(default_factory=list)
    busy: int = -1
    """Last step at which its value is alive."""

    def grow(self, size: Size) -> None:
        """Make room for ``size`` elements, whatever the named sizes are."""
        if any(_covers(known, size) for known in self.sizes):
            return
        self.sizes = [*(known for known in self.sizes if not _covers(size, known)), size]

    @property
    def usual(self) -> int:
        """About how many elements it has."""
        return max((_usual(size) for size in self.sizes), default=0)


def plan(lifetimes: Mapping[int, Lifetime]) -> tuple[dict[int, int], list[Slot]]:
    """Slot of every value, and the slots. Values are placed in the order in which they are written."""
    slots: list[Slot] = []
    placed: dict[int, int] = {}
    inherited: set[int | None] = set()
    for name, life in sorted(lifetimes.items(), key=lambda item: (item[1].first, item[0])):
        index = None if life.over in inherited else _taken_over(life, lifetimes, placed)
        if index is not None and slots[index].busy == life.first:
            inherited.add(life.over)
        else:
            free = [i for i, s in enumerate(slots) if s.busy < life.first and s.ctype == life.ctype]
            index = min(free, key=lambda i: _misfit(slots[i], life.size), default=None)
        if index is None:
            slots.append(Slot(life.ctype))
            index = len(slots) - 1
        slots[index].grow(life.size)
        slots[index].busy = max(slots[index].busy, life.last)
        placed[name] = index
    return placed, slots


def _taken_over(life: Lifetime, lifetimes: Mapping[int, Lifetime], placed: Mapping[int, int]) -> int | None:
    old = None if life.over is None else lifetimes.get(life.over)
    if old is None or life.over is None or old.last != life.first or old.first == life.first:
        return None
    return placed[life.over] if (old.ctype, old.size) == (life.ctype, life.size) else None


def _misfit(slot: Slot, size: Size) -> tuple[int, int]:
    """Elements that the slot would have to grow by, then those it has too many."""
    wanted, has = _usual(size), slot.usual
    return max(0, wanted - has), max(0, has - wanted)


def _usual(size: Size) -> int:
    number, names = factors(size)
    return int(number * _USUAL ** len(names))


def _covers(large: Size, small: Size) -> bool:
    """Whether ``large`` is at least ``small`` for sure: the same names, and no smaller a number."""
    (a, names), (b, others) = factors(large), factors(small)
    return a >= b and names == others


def live_steps(
    reads: Sequence[frozenset[int]], writes: Sequence[frozenset[int]], kept: frozenset[int]
) -> list[bool]:
    """Which steps have an effect: they write what is kept, or what such a step reads behind them."""
    wanted = set(kept)
    alive = [False] * len(reads)
    for index in reversed(range(len(reads))):
        if writes[index] & wanted:
            alive[index] = True
            wanted |= reads[index]
    return alive


def waits(
    reads: Sequence[frozenset[str]], writes: Sequence[frozenset[str]], scratch: Sequence[bool]
) -> list[bool]:
    """Before which steps all workers must have ended those before: the step reads what one of them writes,
    writes what one reads or writes, or both use scratch memory. Names are of buffers, not of values.
    """
    found = []
    read: set[str] = set()
    written: set[str] = set()
    uses = False
    for mine, made, needs in zip(reads, writes, scratch, strict=True):
        clash = bool(mine & written or made & (read | written)) or (uses and needs)
        found.append(clash)
        if clash:
            read, written, uses = set(), set(), False
        read |= mine
        written |= made
        uses |= needs
    return found
