"""Requests simulated on one replica: every micro-batch goes through the stages, sequences come and go."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import require
from .load import Load
from .memory import memory_of
from .steady import chunks_of, sequences_of, steps_of
from .step import Cost, Work

STAGE_STEPS = 20_000
"""Steps of stages that are simulated at most: about a second of this machine's time."""

ADMITTED, LEAST = 20, 64
"""Requests that are to be admitted meanwhile, and steps of a micro-batch at least."""

CONTEXTS = 8
"""Contexts are rounded to so many tokens, so that a step's time is computed once."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stage that computes a micro-batch's step, in which ``prompt`` tokens are read."""

    stage: int
    micro_batch: int
    start: float
    end: float
    prompt: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """What came out. ``rate``: output tokens a second of all replicas (requests, without output).

    ``ttft``, ``tpot``: seconds, median and 99th percentile, None if no token came. ``busy``: each stage's
    share of the time. ``seconds``: simulated.
    """

    seconds: float
    rate: float
    ttft: tuple[float, float] | None
    tpot: tuple[float, float] | None
    busy: tuple[float, ...]
    spans: tuple[Span, ...]

    @property
    def bubble(self) -> float:
        """Share of the time in which stages wait, on average."""
        return 1 - sum(self.busy) / len(self.busy)


@dataclass(slots=True)
class _Sequence:
    """One request: when it was admitted, tokens read and written so far; whether all of it is simulated."""

    admitted: float
    read: int = 0
    written: int = 0
    whole: bool = False


@dataclass(slots=True)
class _Group:
    """The sequences of a micro-batch."""

    sequences: list[_Sequence] = field(default_factory=list)
    last: float | None = None


def simulate(cost: Cost, load: Load, batch: float | None = None) -> Simulation:
    """A busy replica in its steady state; or ``load.requests``, queued at once, from the first to the last.

    In the steady state a request follows each that is done, and sequences begin evenly far advanced.
    ``batch``: sequences of a micro-batch, by default as many as give each stage one.

    Raises: ToolError without simpy; ValueError if no sequence fits.
    """
    return _Replica(cost, load, batch).run()


class _Replica:
    def __init__(self, cost: Cost, load: Load, batch: float | None) -> None:
        self.simpy = require("simpy", extra="plan")
        self.cost, self.load = cost, load
        self.memory = memory_of(cost, load)
        self.held = sequences_of(cost, load, self.memory)
        if self.held < 1:
            raise ValueError("no sequence fits")
        wanted = max(self.held / cost.mesh.pp, 1.0) if batch is None else batch
        self.count = max(1, min(round(self.held / wanted), self.held))
        self.size = math.ceil(self.held / self.count)
        self.env: Any = self.simpy.Environment()
        self.stages = [self.simpy.Resource(self.env, 1) for _ in range(cost.mesh.pp)]
        self.waiting = None if load.requests is None else math.ceil(load.requests / cost.mesh.dp)
        self.known: dict[tuple[Work, bool, int], float] = {}
        self.spans: list[Span] = []
        self.first: list[float] = []
        self.next: list[tuple[float, int]] = []
        self.done = self.written = 0

    def run(self) -> Simulation:
        steps = self._steps()
        runs = [
            self.env.process(self._micro_batch(i, group, steps)) for i, group in enumerate(self._groups())
        ]
        self.env.run(self.env.all_of(runs))
        seconds = float(self.env.now)
        busy = [0.0] * len(self.stages)
        for span in self.spans:
            busy[span.stage] += span.end - span.start
        made = self.written if self.load.output else self.done
        return Simulation(
            seconds=seconds,
            rate=self.cost.mesh.dp * made / seconds,
            ttft=_quantiles([(value, 1) for value in self.first]),
            tpot=_quantiles(self.next),
            busy=tuple(value / seconds for value in busy),
            spans=tuple(self.spans),
        )

    def _steps(self) -> float:
        """Steps of each micro-batch; without end for a given number of requests."""
        if self.waiting is not None:
            return math.inf
        reading = self.size * self.load.prompt / (self.memory.tokens * self.cost.spread)
        own = max(steps_of(self.load, self.memory), reading + self.load.output)
        wanted = math.ceil(ADMITTED * own / self.held)
        return max(LEAST, min(wanted, STAGE_STEPS // (self.count * len(self.stages))))

    def _groups(self) -> list[_Group]:
        """Micro-batches at the beginning: empty, or of sequences that are evenly far advanced."""
        groups = [_Group() for _ in range(self.count)]
        if self.waiting is None and self.load.output:
            steps, chunks = steps_of(self.load, self.memory), chunks_of(self.load, self.memory)
            for i in range(self.held):
                done = int(steps * (i + 0.5) / self.held)
                read = min(done * math.ceil(self.load.prompt / chunks), self.load.prompt)
                begun = _Sequence(0.0, read, max(done - chunks + 1, 0))
                groups[i % self.count].sequences.append(begun)
        return groups

    def _micro_batch(self, index: int, group: _Group, steps: float) -> Iterator[Any]:
        """A micro-batch's steps, one after the other, each through all stages."""
        while steps > 0:
            steps -= 1
            self._admit(group)
            if not group.sequences:
                return
            work, chunks = self._next(group)
            for stage, resource in enumerate(self.stages):
                with resource.request() as turn:
                    yield turn
                    start = self.env.now
                    yield self.env.timeout(self._seconds(work, stage))
                    self.spans.append(Span(stage, index, start, self.env.now, int(work.prompt)))
                if stage + 1 < len(self.stages):
                    yield self.env.timeout(self.cost.send(work.tokens))
            self._finish(group, chunks)

    def _admit(self, group: _Group) -> None:
        free = self.size - len(group.sequences)
        if self.waiting is not None:
            free = min(free, self.waiting)
            self.waiting -= free
        group.sequences += [_Sequence(self.env.now, whole=True) for _ in range(free)]

    def _next(self, group: _Group) -> tuple[Work, list[tuple[_Sequence, int]]]:
        """The next step: a token of each sequence that writes, then as much of prompts as a step takes."""
        writing = [s for s in group.sequences if s.read == self.load.prompt and self.load.output]
        left = self.memory.tokens * self.cost.spread - len(writing)
        chunks = []
        attended = 0.0
        for sequence in group.sequences:
            size = min(self.load.prompt - sequence.read, max(left, 0))
            if size > 0:
                chunks.append((sequence, size))
                attended += size * (sequence.read + size / 2)
                left -= size
        prompt = sum(size for _, size in chunks)
        context = sum(s.read + s.written for s in writing) / len(writing) if writing else 0.0
        work = Work(
            prompt=float(prompt),
            prompt_context=round(attended / prompt / CONTEXTS) * CONTEXTS if prompt else 0.0,
            chunk=float(max((size for _, size in chunks), default=0)),
            decode=float(len(writing)),
            context=float(round(context / CONTEXTS) * CONTEXTS),
            held=float(self.held),
        )
        return work, chunks

    def _seconds(self, work: Work, stage: int) -> float:
        kind = (work, stage == len(self.stages) - 1, self.cost.layers[stage])
        if kind not in self.known:
            self.known[kind] = self.cost.step(work, stage).seconds
        return self.known[kind]

    def _finish(self, group: _Group, chunks: list[tuple[_Sequence, int]]) -> None:
        """Count what the step wrote; sequences that are done leave."""
        now = float(self.env.now)
        writing = [s for s in group.sequences if s.read == self.load.prompt and self.load.output]
        if writing and group.last is not None:
            self.next.append((now - group.last, len(writing)))
        group.last = now
        for sequence, size in chunks:
            sequence.read += size
            if sequence.read == self.load.prompt:
                if sequence.whole:
                    self.first.append(now - sequence.admitted)
                writing.append(sequence)
        for sequence in writing:
            sequence.written += 1
        self.written += len(writing) if self.load.output else 0
        staying = [s for s in group.sequences if s.read < self.load.prompt or s.written < self.load.output]
        self.done += len(group.sequences) - len(staying)
        group.sequences = staying


def _quantiles(values: list[tuple[float, int]]) -> tuple[float, float] | None:
    """Median and 99th percentile of values that each count so many times."""
    if not values:
        return None
    ordered = np.array(sorted(values))
    reached = np.cumsum(ordered[:, 1]) / ordered[:, 1].sum()
    middle, late = (float(ordered[np.searchsorted(reached, share), 0]) for share in (0.5, 0.99))
    return middle, late
