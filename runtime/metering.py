"""Metering: what runs took of a device by its counters: joules per run, peak memory, clocks, throttling."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .counters import Counters, Glance

STRETCH = 1.0
"""Seconds that a candidate runs by itself to be metered: NVML's energy counter goes on in steps of 0.1 s."""

SHORTEST = 0.5
"""Seconds below which the steps of an energy counter say more than the energy."""

_PERIOD = 0.02


@dataclass(frozen=True, slots=True)
class Usage:
    """What a metered stretch of runs took.

    ``joules``: of the whole device. ``per_run``: joules of one run. ``memory_peak``: bytes of the device in
    use, all processes together. ``clocks``: lowest and highest of the processor, MHz; ``memory_clock``: the
    highest. ``throttling``: everything that slowed it down at some time. ``why``: the reason for each field
    that is None.
    """

    source: str
    seconds: float = 0.0
    runs: int = 0
    joules: float | None = None
    memory_peak: int | None = None
    clocks: tuple[int, int] | None = None
    memory_clock: int | None = None
    throttling: tuple[str, ...] | None = None
    per_run: float | None = None
    why: Mapping[str, str] = field(default_factory=dict)

    @property
    def watts(self) -> float | None:
        """Mean power."""
        return None if self.joules is None or not self.seconds else self.joules / self.seconds


class Meter:
    """Adds up what ``counters`` say while it is entered; may be entered several times.

    Memory, clocks and throttling are looked at from a thread of its own, every 20 ms.
    """

    def __init__(self, counters: Counters, period: float = _PERIOD) -> None:
        self._counters, self._period = counters, period
        self._joules: float | None = 0.0
        self._seconds = 0.0
        self._glances: list[Glance] = []

    def __enter__(self) -> Meter:
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="miaotui-counters", daemon=True)
        self._glances.append(self._counters.glance())
        self._watcher.start()
        self._before, self._began = self._counters.energy(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds += time.perf_counter() - self._began
        after = self._counters.energy()
        self._over.set()
        self._watcher.join()
        self._glances.append(self._counters.glance())
        known = self._joules is not None and self._before is not None and after is not None
        self._joules = self._joules + after - self._before if known else None  # type: ignore[operator]

    def _watch(self) -> None:
        while not self._over.wait(self._period):
            self._glances.append(self._counters.glance())

    def usage(self, runs: int, shortest: float = SHORTEST) -> Usage:
        """What was counted so far, while there were ``runs`` runs or tokens.

        ``shortest``: seconds below which energy is not told.
        """
        why, joules = dict(self._counters.lacks), self._joules
        if "joules" not in why and self._seconds < shortest:
            why["joules"] = f"{self._seconds:.2f} s were metered, too short for its steps: ask for more"
        if "joules" in why:
            joules = None
            why["per_run"] = why["joules"]
        clocks = [g.clock for g in self._glances if g.clock is not None]
        return Usage(
            source=self._counters.name,
            seconds=self._seconds,
            runs=runs,
            joules=joules,
            memory_peak=max((g.memory for g in self._glances if g.memory is not None), default=None),
            clocks=(min(clocks), max(clocks)) if clocks else None,
            memory_clock=max(
                (g.memory_clock for g in self._glances if g.memory_clock is not None), default=None
            ),
            throttling=None if "throttling" in why else _union(self._glances),
            per_run=None if joules is None or not runs else joules / runs,
            why=why,
        )


def metered(call: Callable[[], object], counters: Counters, seconds: float = STRETCH) -> Usage:
    """``call`` again and again for ``seconds``, and what that took; nothing runs if nothing counts."""
    if counters.glance() == Glance() and counters.energy() is None:
        return Meter(counters).usage(0)
    meter, runs = Meter(counters), 0
    with meter:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            call()
            runs += 1
    return meter.usage(runs, min(SHORTEST, seconds))


def _union(glances: Sequence[Glance]) -> tuple[str, ...]:
    return tuple(sorted(frozenset().union(*(glance.throttling for glance in glances))))
