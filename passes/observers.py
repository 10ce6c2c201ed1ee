"""Run a pipeline under observers: verification, timing, snapshots and numerics happen between passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ..compiler.ir.evaluate import evaluate
from ..compiler.ir.printer import print_program
from ..compiler.ir.verify import verify
from ..compiler.program import Program
from ..compiler.reference import Array, Arrays
from ..compiler.weights import stored_bytes
from .base import Pass, PassContext, PassResult, Pipeline
from .moments import LayeredMoments


class Observer(Protocol):
    """Told after every pass; must leave the program as it is."""

    def after(self, step: Pass, program: Program, result: PassResult, seconds: float) -> None:
        """``step`` has just run on ``program``."""
        ...


def run_pipeline(
    program: Program, pipeline: Pipeline, context: PassContext, observers: Sequence[Observer] = ()
) -> list[tuple[Pass, PassResult]]:
    """Run every pass of ``pipeline`` on ``program`` in place; the results, in order.

    Moments that a pass derived reach the passes behind it; the context that was given stays as it is.
    """
    results = []
    for step in pipeline:
        start = time.perf_counter()
        result = step.run(program, context)
        seconds = time.perf_counter() - start
        for observer in observers:
            observer.after(step, program, result, seconds)
        if result.moments:
            context = replace(context, moments=LayeredMoments(result.moments, context.moments or {}))
        results.append((step, result))
    return results


@dataclass(slots=True)
class Verify:
    """Verify the IR after every pass that changed it. Raises: InternalError naming the pass."""

    def after(self, step: Pass, program: Program, result: PassResult, seconds: float) -> None:
        """Verify ``program`` if ``step`` changed it."""
        if result.changed:
            verify(program, after=step.name)


@dataclass(slots=True)
class Timing:
    """Seconds each pass took, in order."""

    seconds: list[tuple[str, float]] = field(default_factory=list)

    def after(self, step: Pass, program: Program, result: PassResult, seconds: float) -> None:
        """Record ``seconds``."""
        self.seconds.append((step.name, seconds))


@dataclass(slots=True)
class Weights:
    """Bytes of the program's weights after each pass, in order, counted anew only if it changed something."""

    sizes: list[int] = field(default_factory=list)

    def after(self, step: Pass, program: Program, result: PassResult, seconds: float) -> None:
        """Record them."""
        counted = result.changed or not self.sizes
        self.sizes.append(stored_bytes(program) if counted else self.sizes[-1])


@dataclass(slots=True)
class SaveIR:
    """Write the program's text after every pass that changed it, as ``NN-pass.txt`` in ``folder``."""

    folder: Path
    count: int = 0

    def after(self, step: Pass, program: Program, result: PassResult, seconds: float) -> None:
        """Write one file."""
        self.count += 1
        if result.changed:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.count:02}-{step.name}.txt"
            path.write_text(print_program(program), encoding="utf-8")


@dataclass(slots=True)
class Numerics:
    """Evaluate the program without a backend after every pass that changed it; remembers the error.

    Needs no kernels, only patience. ``inputs`` and ``expected``: by name, of entry ``main``.
    ``distance``: scaled error of one output. ``errors``: (pass, greatest scaled error of any output), in
    order; the pass after which it jumps is the guilty one.
    """

    inputs: Arrays
    expected: Arrays
    distance: Callable[[Array, Array], float]
    errors: list[tuple[str, float]] = field(default_factory=list)

    def after(self, step: Pass, program: Program, result: PassResult, seconds: float) -> None:
        """Evaluate and record."""
        if result.changed:
            outputs = evaluate(program.main, self.inputs)
            worst = max(self.distance(outputs[name], value) for name, value in self.expected.items())
            self.errors.append((step.name, worst))
