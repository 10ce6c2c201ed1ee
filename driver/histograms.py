"""Where activations of a program lie, as histograms: what static 8-bit scales are taken from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..compiler.program import Program
from ..compiler.reference import Arrays
from ..passes.histograms import Histogram
from .probe import Probe, prepared


class Histograms:
    """``PassContext.histograms``: runs the program, as far as passes have brought it, on ``inputs``.

    Programs of the same nodes and weights' names, which passes make of one source again and again while
    others are tried, are run once.
    """

    __slots__ = ("_known", "inputs", "threads")

    def __init__(self, inputs: Sequence[Arrays], threads: int | None = None) -> None:
        self.inputs = inputs
        self.threads = threads
        self._known: dict[int, dict[str, Histogram]] = {}

    def __call__(self, program: Program, names: Sequence[str]) -> Mapping[str, Histogram]:
        """Histograms of the values ``names`` of the main entry; all-NaN ones are missing."""
        key = _key(program, names)
        if key not in self._known:
            self._known[key] = self._measured(program, names)
        return self._known[key]

    def _measured(self, program: Program, names: Sequence[str]) -> dict[str, Histogram]:
        found: dict[str, Histogram] = {}
        if not self.inputs or not names:
            return found
        with Probe(prepared(program, ()), values=names, threads=self.threads) as probe:
            for arrays in self.inputs:
                results = {**arrays, **probe.run(arrays)}
                for name in names:
                    joined = Histogram.of(np.asarray(results[name]), found.get(name))
                    if joined is not None:
                        found[name] = joined
        return found


def _key(program: Program, names: Sequence[str]) -> int:
    nodes = tuple(
        (node.op_type, tuple(v.name for v in node.inputs if v is not None)) for node in program.main.graph
    )
    return hash((nodes, tuple(names)))
