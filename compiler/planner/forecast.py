"""What a mesh is predicted to give: times, rates, shares of time, memory, price."""

from __future__ import annotations

from dataclasses import dataclass

from ..parallel.mesh import Mesh
from .load import Load
from .memory import Memory
from .steady import Steady, chunks_of, stage_steps, steady
from .step import Cost, Work


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds, tokens a second (requests, where nothing is written), shares of the time, dollars.

    ``ttft``: from a request's admission to its first token. ``tpot``: from one token to the next.
    ``micro_batch``: sequences that go through the stages together, of which each replica has
    ``micro_batches``. ``utilisation``: operations done, of those the data sheet has. ``bubble``: time in
    which stages wait for each other. ``communication``: time in which ranks exchange. ``dollars``: of a
    million tokens written (of a million requests), if there is a price.
    """

    mesh: Mesh
    micro_batch: float
    micro_batches: float
    ttft: float
    tpot: float
    rate: float
    utilisation: float
    bubble: float
    communication: float
    memory: Memory
    dollars: float | None = None

    @property
    def concurrency(self) -> int:
        """Sequences under way at a time, on all replicas."""
        return round(self.mesh.dp * self.micro_batch * self.micro_batches)

    def latency(self, output: int) -> float:
        """Seconds from a request's admission to its last token."""
        return self.ttft + max(output - 1, 0) * self.tpot


def forecast(
    cost: Cost, load: Load, batch: float | None = None, price: float | None = None
) -> Forecast | None:
    """The forecast of a mesh, None if it does not fit memory. ``price``: of a device's hour, in dollars."""
    state = steady(cost, load, batch)
    if not state.rate:
        return None
    ttft, tpot = time_to_first(cost, load, state), state.cycle if load.output else 0.0
    rate = state.rate
    if load.output and load.concurrency == 1:
        # alone, a request reads its prompt first and writes then
        tpot = _through(cost, Work(decode=1.0, context=load.prompt + load.output / 2, held=1.0))
        rate = load.output / (ttft + (load.output - 1) * tpot)
    stages, size = len(state.steps), cost.mesh.size
    exchanged = sum(step.communication for step in state.steps) / stages + state.send * (stages - 1) / stages
    operations = state.running * sum(step.operations for step in state.steps) / stages
    peak = cost.compute / cost.constants.compute
    return Forecast(
        mesh=cost.mesh,
        micro_batch=state.batch,
        micro_batches=state.running,
        ttft=ttft,
        tpot=tpot,
        rate=rate,
        utilisation=operations / state.cycle / peak,
        bubble=max(1 - state.busy, 0.0),
        communication=state.running * exchanged / state.cycle,
        memory=state.memory,
        dollars=None if price is None else price * size / 3600 / rate * 1e6,
    )


def time_to_first(cost: Cost, load: Load, state: Steady) -> float:
    """Seconds in which a prompt goes through all stages in chunks, beside the others of its micro-batch.

    In a busy replica it first waits for half a step.
    """
    chunks = chunks_of(load, state.memory)
    size = load.prompt / chunks
    others = max(state.batch - 1, 0.0) if load.output else 0.0
    held = state.batch * state.running
    work = Work(size, load.prompt / 2, size, others, load.prompt + load.output / 2, held)
    slowest = max(step.seconds for step in stage_steps(cost, work))
    through = _through(cost, work)
    waiting = max(step.seconds for step in state.steps) / 2 if held > 1 else 0.0
    return waiting + through + (chunks - 1) * max(through, state.running * slowest)


def _through(cost: Cost, work: Work) -> float:
    """Seconds in which a step goes through all stages."""
    return sum(step.seconds for step in stage_steps(cost, work)) + (cost.mesh.pp - 1) * cost.send(work.tokens)
