"""The proof: the executable and the source framework on the same inputs, at more than one size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.errors import InputError
from ..compiler.ir.examples import example_inputs
from ..compiler.program import Decoding, Dim, DimRange, Program
from ..compiler.reference import Array, Arrays
from ..frontends.base import Import
from ..passes.observers import Numerics
from ..runtime.compare import Difference, Limit, differences, scaled_error, worst
from ..runtime.stepwise import StepwiseRunner
from ..runtime.tensors import fitted
from .sample_text import with_sample_text
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
        """Run the source on the user's example inputs, else made-up ones, and on other sizes with padding."""
        try:
            inputs = proof_inputs(imported.program, imported.examples, seed)
        except MemoryError as error:
            fact = "example inputs of these sizes do not fit in memory"
            raise InputError("inputs", fact, "fix smaller sizes with --input or --dim") from error
        run = imported.reference.run
        found = tuple(Case(arrays, run(arrays)) for arrays in inputs)
        return cls(imported.reference.name, found)

    def numerics(self) -> Numerics:
        """An observer that evaluates the first case after every pass."""
        first = self.cases[0]
        return Numerics(first.inputs, first.expected, scaled_error)


@dataclass(frozen=True, slots=True)
class Proof:
    """Every output of every case against the source. ``ok`` only if all are within the tolerance.

    ``faithful``: where weights are pruned or factored, also against the program with those weights.
    """

    reference: str
    limit: Limit
    found: tuple[Difference, ...]
    faithful: Proof | None = None

    @property
    def ok(self) -> bool:
        """Whether every output of every case is within its tolerance."""
        return all(d.ok for d in self.found) and (self.faithful is None or self.faithful.ok)

    @property
    def failed(self) -> Proof | None:
        """What fails: itself against the source first, else ``faithful``; None if all is well."""
        return None if self.ok else self if not all(d.ok for d in self.found) else self.faithful

    @property
    def worst(self) -> Difference | None:
        """The output that is furthest off."""
        return worst(self.found)

    def errors(self) -> dict[str, float]:
        """Greatest error by output name."""
        greatest: dict[str, float] = {}
        for item in self.found:
            greatest[item.name] = max(greatest.get(item.name, 0.0), item.scaled)
        return greatest


def proof_inputs(program: Program, examples: Arrays | None, seed: int) -> list[Arrays]:
    """What a program is proved on: ``examples``, else made-up inputs, then other sizes with padding.

    The first of them given as examples, it gives the same again.
    """
    first = examples or typical_inputs(program, seed)
    sizes = _other_sizes(program, first)
    second = _made(program, sizes, seed + 1) if sizes else first
    cases = [first, _padded(second)] if sizes or _masks(first) else [first]
    pasts = {str(d): 0 for spec in program.inputs() for d in spec.shape or () if _is_past(d)}
    return [*cases, _made(program, {**typical_sizes(program), **pasts}, seed)] if pasts else cases


def typical_inputs(program: Program, seed: int) -> Arrays:
    """Made-up inputs of the sizes that latency is usually quoted for."""
    return _made(program, typical_sizes(program), seed)


def _is_past(dim: Dim) -> bool:
    return isinstance(dim, str) and dim.isidentifier() and "past" in dim


def _made(program: Program, sizes: dict[str, int], seed: int) -> Arrays:
    return with_sample_text(program, example_inputs(program, sizes=sizes, seed=seed))


def typical_sizes(program: Program) -> dict[str, int]:
    """Batch 1 and 128 tokens, which latency is usually quoted for, where the ranges allow."""
    sizes = {}
    for spec in program.inputs():
        for dim in spec.shape or ():
            if not isinstance(dim, str) or not dim.isidentifier():
                continue
            wanted = 1 if "batch" in dim else 128 if "seq" in dim or "length" in dim else None
            span = program.dims.get(dim, DimRange())
            if wanted is not None:
                sizes[dim] = max(span.minimum, wanted if span.maximum is None else min(wanted, span.maximum))
    return sizes


def _masks(inputs: Arrays) -> list[str]:
    """Names of padding masks: two-dimensional, all ones, called so."""
    return [
        name for name, a in inputs.items() if "mask" in name and a.ndim == 2 and a.size and np.all(a == 1)
    ]


def _padded(inputs: Arrays) -> Arrays:
    """The inputs with the last third of the last row masked out, so that the proof sees masks work."""
    padded = dict(inputs)
    for name in _masks(inputs):
        mask = inputs[name].copy()
        mask[-1, max(1, mask.shape[1] * 2 // 3) :] = 0
        padded[name] = mask
    return padded


def _other_sizes(program: Program, inputs: Arrays) -> dict[str, int]:
    """A size that differs from the example's for every named dimension, where its range has one."""
    seen = {
        dim: size
        for spec in program.inputs()
        for dim, size in zip(spec.shape or (), inputs[spec.name].shape, strict=False)
        if isinstance(dim, str) and dim.isidentifier()
    }
    others = {}
    for name, size in seen.items():
        allowed = program.dims.get(name)
        for other in (size + 1, size - 1):
            if other >= 1 and (allowed is None or other in allowed):
                others[name] = other
                break
    return others


def prove(built: Built, evidence: Evidence, limit: Limit, threads: int | None) -> Proof:
    """Run ``built`` on every case and compare with what the source computed.

    An entry with state is run on the same tokens step by step: its logits must be the whole sequence's.
    """
    found: list[Difference] = []
    with built.open(threads) as runner:
        for case in evidence.cases:
            given = fitted(case.inputs, runner.inputs)
            found.extend(differences(runner.run(given), case.expected, limit))
    if built.decoding is not None:
        with built.open_stepwise(threads) as stepwise:
            for case in evidence.cases:
                if not _continues(case.inputs):
                    found.extend(_stepwise(stepwise, built.decoding, case, limit))
    return Proof(evidence.reference, limit, tuple(found))


def _continues(inputs: Arrays) -> bool:
    """Whether the whole model is given a past of its own, [batch, heads, length, width]."""
    return any("past" in name and a.ndim == 4 and a.size for name, a in inputs.items())


def _stepwise(runner: StepwiseRunner, decoding: Decoding, case: Case, limit: Limit) -> tuple[Difference, ...]:
    whole = next(a for a in case.expected.values() if a.ndim == 3 and a.shape[-1] == decoding.vocabulary)
    logits = runner.logits(case.inputs)
    seen = _attended(case.inputs, decoding.tokens)
    name = f"{decoding.entry} {decoding.logits}"
    return differences({name: logits[seen][None]}, {name: whole[seen][None]}, limit)


def _attended(inputs: Arrays, tokens: str) -> Array:
    """bool[batch, sequence]: tokens that the mask of the same shape keeps; state knows no padding."""
    shape = inputs[tokens].shape
    masks = [inputs[name] != 0 for name in inputs if "mask" in name and inputs[name].shape == shape]
    return np.asarray(np.logical_and.reduce([np.ones(shape, bool), *masks]))
