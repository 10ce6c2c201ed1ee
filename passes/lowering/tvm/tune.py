"""How much measuring TVM may do for kernels that it schedules itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ....compiler.program import TRIALS, Program
from ...base import Note, Pass, PassContext, PassResult


@dataclass(frozen=True)
class TuneKernels(Pass):
    """Let TVM measure schedules for kernels of known sizes and keep the fastest.

    ``trials``: schedules measured for each kernel, 0 for none. What was measured is kept in the cache folder,
    by kernel and instruction set: an interrupted run goes on where it was, the next one measures nothing.
    """

    name: ClassVar[str] = "tune-kernels"
    trials: int = 0

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Note it in the program, for the code generator."""
        if self.trials <= 0:
            return PassResult()
        for model in program.entries.values():
            model.metadata_props[TRIALS] = str(self.trials)
        return PassResult(1, (Note("kernels", f"{self.trials} trials each"),))
