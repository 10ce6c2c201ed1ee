"""From the imported program to one a backend can build: the pipeline on a copy, some passes left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..compiler.program import Program
from ..passes.base import Pass, PassContext, PassResult
from ..passes.lowering.native import NATIVE_FP16
from ..passes.lowrank import LOWRANK
from ..passes.observers import Observer, Timing, Weights, run_pipeline
from ..passes.precision import PRECISION, WEIGHTS
from ..passes.sparsity import SPARSITY

LOSSY = frozenset(
    step.name
    for room in (PRECISION, NATIVE_FP16, SPARSITY, LOWRANK, *WEIGHTS.values())
    for step in room
    if not step.optional
)
"""Passes that were asked for by a precision or a sparsity, and trade error for it: a program is complete
without them, but no longer what was asked for."""


@dataclass(frozen=True, slots=True)
class Step:
    """One pass as it ran: its result, how many seconds it took, bytes of the program's weights behind it."""

    step: Pass
    result: PassResult
    seconds: float
    weights: int


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program after the pipeline, and what each pass did."""

    program: Program
    steps: tuple[Step, ...]

    def fired(self, lossy: bool = False) -> list[str]:
        """Names of the optional passes that changed something, in order, each once; ``LOSSY`` ones too."""
        changed = [s.step for s in self.steps if s.result.changed]
        return list(dict.fromkeys(s.name for s in changed if s.optional or (lossy and s.name in LOSSY)))


@dataclass(frozen=True, slots=True)
class Recipe:
    """An imported program and the pipeline that lowers it; every ``lower`` starts afresh."""

    source: Program
    pipeline: Sequence[Pass]
    context: PassContext

    def lower(self, without: frozenset[str] = frozenset(), observers: Sequence[Observer] = ()) -> Lowered:
        """Run the pipeline on a copy of the source, leaving out the passes named in ``without``."""
        program = self.source.clone()
        timing, weights = Timing(), Weights()
        kept = [step for step in self.pipeline if step.name not in without]
        results = run_pipeline(program, kept, self.context, [timing, weights, *observers])
        told = zip(results, timing.seconds, weights.sizes, strict=True)
        steps = (Step(p, r, seconds, size) for (p, r), (_, seconds), size in told)
        return Lowered(program, tuple(steps))
