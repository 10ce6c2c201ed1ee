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
class Milestones:
    """The program before the first and behind the last pass that prunes or factors weights; their names."""

    exact: Program
    approximated: Program
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program after the pipeline, and what each pass did; ``milestones`` if weights are approximated."""

    program: Program
    steps: tuple[Step, ...]
    milestones: Milestones | None = None

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
        copies = _Copies(self.source, kept)
        results = run_pipeline(program, kept, self.context, [timing, weights, copies, *observers])
        told = zip(results, timing.seconds, weights.sizes, strict=True)
        steps = (Step(p, r, seconds, size) for (p, r), (_, seconds), size in told)
        return Lowered(program, tuple(steps), copies.milestones())


class _Copies:
    """Keeps copies of the program around the passes that prune and factor; weights are shared."""

    __slots__ = ("_at", "_count", "_exact", "_last", "_passes")

    def __init__(self, source: Program, passes: Sequence[Pass]) -> None:
        names = {step.name for step in (*SPARSITY, *LOWRANK)}
        self._passes = passes
        self._at = [index for index, step in enumerate(passes) if step.name in names]
        self._count = 0
        self._exact: Program | None = source if self._at and self._at[0] == 0 else None
        self._last: Program | None = None

    def after(self, step: Pass, program: Program, result: PassResult, seconds: float) -> None:
        self._count += 1
        if self._at and self._count == self._at[0]:
            self._exact = program.clone()
        if self._at and self._count == self._at[-1] + 1:
            self._last = program.clone()

    def milestones(self) -> Milestones | None:
        if self._exact is None or self._last is None:
            return None
        first, last = (self._passes[self._at[index]].name for index in (0, -1))
        return Milestones(self._exact, self._last, first, last)
