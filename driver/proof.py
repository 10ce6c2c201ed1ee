"""The proof: the executable and the source framework on the same inputs, at more than one size."""

from __future__ import annotations

from dataclasses import dataclass

from ..compiler.ir.examples import example_inputs
from ..compiler.program import Program
from ..compiler.reference import Arrays
from ..frontends.base import Import
from ..runtime.compare import Difference, differences, worst
from .workbench import Built


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs and what the source framework computes from them."""

    inputs: Arrays
    expected: Arrays


@dataclass(frozen=True, slots=True)
class Evidence:
    """Cases the source framework (``reference``, its name and version) has computed."""

    reference: str
    cases: tuple[Case, ...]

    @classmethod
    def of(cls, imported: Import, seed: int) -> Evidence:
        """Run the source on the user's example inputs, else made-up ones, and on other sizes if any."""
        inputs = [imported.examples] if imported.examples else [example_inputs(imported.program, seed=seed)]
        sizes = _other_sizes(imported.program, inputs[0])
        if sizes:
            inputs.append(example_inputs(imported.program, sizes=sizes, seed=seed + 1))
        run = imported.reference.run
        found = tuple(Case(arrays, run(arrays)) for arrays in inputs)
        return cls(imported.reference.name, found)


@dataclass(frozen=True, slots=True)
class Proof:
    """Every output of every case against the source. ``ok`` only if all are within the tolerance."""

    reference: str
    tolerance: float
    found: tuple[Difference, ...]

    @property
    def ok(self) -> bool:
        """Whether every output of every case is within its tolerance."""
        return all(d.ok for d in self.found)

    @property
    def worst(self) -> Difference | None:
        """The output that is furthest off."""
        return worst(self.found)

    def errors(self) -> dict[str, float]:
        """Greatest scaled error by output name."""
        greatest: dict[str, float] = {}
        for item in self.found:
            greatest[item.name] = max(greatest.get(item.name, 0.0), item.scaled)
        return greatest


def _other_sizes(program: Program, inputs: Arrays) -> dict[str, int]:
    """A size that differs from the example's for every named dimension, where its range has one."""
    seen = {
        dim: size
        for spec in program.inputs()
        for dim, size in zip(spec.shape or (), inputs[spec.name].shape, strict=False)
        if isinstance(dim, str)
    }
    others = {}
    for name, size in seen.items():
        allowed = program.dims.get(name)
        for other in (size + 1, size - 1):
            if other >= 1 and (allowed is None or other in allowed):
                others[name] = other
                break
    return others


def prove(built: Built, evidence: Evidence, tolerance: float, threads: int | None) -> Proof:
    """Run ``built`` on every case and compare with what the source computed."""
    found: list[Difference] = []
    with built.open(threads) as runner:
        for case in evidence.cases:
            found.extend(differences(runner.run(case.inputs), case.expected, tolerance))
    return Proof(evidence.reference, tolerance, tuple(found))
