"""The steady state of a replica in closed form: fitted to measurements, and what the search ranks by."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .load import Load
from .memory import Memory, memory_of
from .step import Cost, Step, Work

SAMPLES = 32
"""Samples of a network without tokens that are computed together at most: enough to fill a device."""


@dataclass(frozen=True, slots=True)
class Steady:
    """A busy mesh. ``rate``: output tokens a second of all replicas (requests, without output).

    ``cycle``: seconds from one token of a sequence to its next. ``batch``: sequences in a micro-batch, of
    which a replica has ``running``. ``steps``: each stage's, on average over those that read prompts too
    (``mixed``, a share ``mixing`` of all) and those that only write. ``send``: seconds between stages.
    """

    rate: float
    cycle: float
    batch: float
    running: float
    steps: tuple[Step, ...]
    mixed: tuple[Step, ...]
    mixing: float
    send: float
    memory: Memory

    @property
    def busy(self) -> float:
        """Share of the time that the stages compute, on average; what is left is the pipeline's bubble."""
        if not self.steps:
            return 0.0
        return self.running * sum(step.seconds for step in self.steps) / len(self.steps) / self.cycle


def sequences_of(cost: Cost, load: Load, memory: Memory) -> int:
    """Sequences that a replica has under way at a time; without output, those of one step in each stage."""
    step = SAMPLES if cost.network.kind == "graph" else cost.stack.sequences
    if not load.output:
        step = min(step, max(memory.tokens // load.prompt, 1))
    most = min(memory.sequences, step * cost.mesh.pp * cost.spread)
    asked = [n for n in (load.concurrency, load.requests) if n is not None]
    return min([most, *(math.ceil(n / cost.mesh.dp) for n in asked)])


def steady(cost: Cost, load: Load, batch: float | None = None) -> Steady:
    """The steady state with micro-batches of ``batch`` sequences, by default as many as there are stages.

    Requests that start together end together, so a few are served in whole rounds.
    """
    memory = memory_of(cost, load)
    held = sequences_of(cost, load, memory)
    if held < 1:
        return Steady(0.0, math.inf, 0.0, 0.0, (), (), 0.0, 0.0, memory)
    average = float(held)
    if load.requests is not None:
        each = load.requests / cost.mesh.dp
        average = each / math.ceil(each / held - 1e-9)
    batch = max(average / cost.mesh.pp, 1.0) if batch is None else min(batch, average)
    running = average / batch
    mixed, mixing = _mixed(load, memory, batch, average)
    steps = full = stage_steps(cost, mixed)
    if mixing < 1:
        quiet = stage_steps(cost, replace(mixed, prompt=0.0))
        steps = tuple(one.blend(other, mixing) for one, other in zip(quiet, full, strict=True))
    send = cost.send(mixed.prompt * mixing + mixed.decode)
    slowest = max(step.seconds for step in steps)
    around = sum(step.seconds for step in steps) + (cost.mesh.pp - 1) * send
    cycle = max(around, running * slowest)
    rate = cost.mesh.dp * average * max(load.output, 1) / (steps_of(load, memory) * cycle)
    return Steady(rate, cycle, batch, running, steps, full, mixing, send, memory)


def _mixed(load: Load, memory: Memory, batch: float, held: float) -> tuple[Work, float]:
    """A step that reads prompts too, in chunks, and which share of all steps does."""
    steps = steps_of(load, memory)
    chunk = load.prompt / chunks_of(load, memory)
    drip = batch * load.prompt / steps
    work = Work(
        prompt=max(drip, chunk),
        prompt_context=load.prompt / 2,
        chunk=chunk,
        decode=batch * max(load.output - 1, 0) / steps,
        context=load.prompt + load.output / 2,
        held=held,
    )
    return work, min(drip / chunk, 1.0)


def chunks_of(load: Load, memory: Memory) -> int:
    """Steps in which a prompt is read."""
    return math.ceil(load.prompt / memory.tokens)


def steps_of(load: Load, memory: Memory) -> int:
    """Steps of a request: those that read its prompt and give the first token, and one for each further."""
    return chunks_of(load, memory) + max(load.output - 1, 0)


def stage_steps(cost: Cost, work: Work) -> tuple[Step, ...]:
    """Every stage's step; stages of as many layers cost the same, but for the last."""
    ends = [(layers, stage == cost.mesh.pp - 1) for stage, layers in enumerate(cost.layers)]
    kinds = {kind: cost.step(work, ends.index(kind)) for kind in dict.fromkeys(ends)}
    return tuple(kinds[kind] for kind in ends)
