"""From the imported program to one a backend can build: the pipeline on a copy, some passes left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..compiler.program import Program
from ..passes.base import Pass, PassContext, PassResult
from ..passes.observers import Observer, Timing, run_pipeline


@dataclass(frozen=True, slots=True)
class Step:
    """One pass as it ran: its result and how many seconds it took."""

    step: Pass
    result: PassResult
    seconds: float


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program after the pipeline, and what each pass did."""

    program: Program
    steps: tuple[Step, ...]

    def fired(self) -> list[str]:
        """Names of the optional passes that changed something, in order, each once."""
        return list(dict.fromkeys(s.step.name for s in self.steps if s.step.optional and s.result.changed))


@dataclass(frozen=True, slots=True)
class Recipe:
    """An imported program and the pipeline that lowers it; every ``lower`` starts afresh."""

    source: Program
    pipeline: Sequence[Pass]
    context: PassContext

    def lower(self, without: frozenset[str] = frozenset(), observers: Sequence[Observer] = ()) -> Lowered:
        """Run the pipeline on a copy of the source, leaving out the passes named in ``without``."""
        program = self.source.clone()
        timing = Timing()
        kept = [step for step in self.pipeline if step.name not in without]
        results = run_pipeline(program, kept, self.context, [timing, *observers])
        steps = (Step(p, r, s) for (p, r), (_, s) in zip(results, timing.seconds, strict=True))
        return Lowered(program, tuple(steps))
