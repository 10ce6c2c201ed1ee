"""Compile: import, transform, build, prove, time, write. Reads top to bottom as it happens."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..compiler.draft import Draft
from ..compiler.errors import CompileError, VerificationError
from ..compiler.options import CompileOptions
from ..compiler.program import Program
from ..compiler.reference import Arrays
from ..frontends.load import load
from ..passes.base import Pass
from ..passes.observers import Observer, SaveIR, Verify
from ..runtime.executable import Executable
from .budget import can_choose, settled
from .calibration import measured_moments, measured_ranges
from .candidates import Candidate, candidates
from .choice import Attempt, Choice, moved
from .context import check_placement, context_of
from .decision import Decision, Outcome
from .finish import finish
from .histograms import Histograms
from .lower import Lowered, Recipe
from .meshes import refuse_mesh
from .opening import open_folder
from .partitioned import partitioned
from .prefixes import measured_prefixes
from .progress import Journal, Progress, Silent
from .proof import Evidence
from .remembered import key_of, recall, remember
from .samples import Samples, samples_of


def compile_model(
    source: object,
    options: CompileOptions,
    *,
    output: str | os.PathLike[str] | None = None,
    inputs: object = None,
    progress: Progress | None = None,
    save_ir: Path | None = None,
    passes: Sequence[Pass] | None = None,
) -> Executable:
    """Compile ``source`` into the folder ``output`` and open it.

    ``passes`` replaces the target's pipeline; ``save_ir`` is a folder for the program's text after each
    pass. Without ``output`` the folder is temporary and goes with the returned object.

    Raises: CompileError; nothing is written then, and an older folder at ``output`` stays as it was.
    """
    journal = Journal(Silent() if progress is None else progress)
    with journal.stage("import"):
        imported = load(source, options, inputs)
    field = candidates(imported.program, options, journal, passes, imported.examples)
    evidence = None
    if options.verify:
        with journal.stage("reference"):
            evidence = Evidence.of(imported, options.seed)
    program = imported.program
    samples = samples_for(program, [case.inputs for case in evidence.cases] if evidence else (), options)
    measured = measured_on(program, samples, options, journal)
    del imported  # the source's session or module: its memory is needed now

    def built(tried: Sequence[Candidate], folder: Path, cached: Decision | None = None) -> Decision | None:
        attempts = attempted(program, tried, samples, measured, evidence, journal, save_ir)
        return write(folder, attempts, evidence, journal, field.left_out, cached)

    temporary = Path(tempfile.mkdtemp(prefix="miaotui-")) if output is None else None
    folder = temporary or Path(str(output))
    try:
        if len(field.tried) == 1 or evidence is None or options.timing <= 0:
            built(field.tried, folder)
        else:
            key = key_of(program, options, evidence.cases[0].inputs)
            if not _built_again(built, field.tried, folder, recall(key), journal):
                decision = built(field.tried, folder)
                if decision is not None:
                    remember(key, decision, program)
        return open_folder(folder, temporary=temporary is not None)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _built_again(
    build: Callable[[Sequence[Candidate], Path, Decision | None], Decision | None],
    tried: Sequence[Candidate],
    folder: Path,
    known: Decision | None,
    journal: Journal,
) -> bool:
    """Build the candidate that an earlier compile of the same kept; whether there is one, and it works."""
    kept = [candidate for candidate in tried if known is not None and candidate.backend == known.kept]
    if not kept:
        return False
    try:
        build(kept, folder, known)
    except CompileError as error:
        told = str(error).splitlines()[0]
        journal.note(f"{kept[0].backend} was the fastest before, and is not now: {told}")
        return False
    return True


def attempted(
    program: Program,
    tried: Sequence[Candidate],
    samples: Samples,
    measured: Mapping[str, Any],
    evidence: Evidence | None,
    journal: Journal,
    save_ir: Path | None = None,
) -> list[Attempt]:
    """The program lowered for each candidate, within its budget if one is set.

    Raises: VerificationError if no candidate holds the budget.
    """
    attempts: list[Attempt] = []
    misses = []
    for candidate in tried:
        options = candidate.options
        recipe = Recipe(program, candidate.passes, replace(context_of(candidate.options), **measured))
        found = None
        if options.budget is not None and can_choose(recipe, candidate.options):
            try:
                found = settled(recipe, candidate.options, samples.inputs, evidence, journal)
            except VerificationError as miss:
                journal.note(f"no {candidate.options.backend} code: {miss}")
                misses.append(miss)
                continue
            recipe = replace(recipe, context=replace(recipe.context, plan=found.plan))
        with journal.stage("transform"):
            saved = save_ir / candidate.options.backend if save_ir and len(tried) > 1 else save_ir
            lowered = _lowered(recipe, evidence, saved, options, journal)
            check_placement(lowered.program, options, journal)
            refuse_mesh(lowered.program, options.mesh, options.memory)
        attempts.append(Attempt(candidate.options, recipe, lowered, found))
    if not attempts:
        raise min(misses, key=str)
    return attempts


def samples_for(program: Program, proof: Sequence[Arrays], options: CompileOptions) -> Samples:
    """Calibration data, if anything asks for it; ``proof``: inputs of the proof. Raises: InputError."""
    if not (options.narrows or options.approximates or options.calib is not None):
        return Samples((), "nothing")
    return samples_of(program, options.calib, proof, options.seed)


def measured_on(
    program: Program, samples: Samples, options: CompileOptions, journal: Journal
) -> dict[str, Any]:
    """Fields of PassContext: what passes that round weights or values want to know of the activations."""
    if not samples.inputs or not (options.narrows or options.approximates):
        return {}
    with journal.stage("calibrate"):
        found: dict[str, Any] = {}
        if options.narrows:
            found["ranges"] = measured_ranges(program, samples.inputs)
        if options.approximates:
            found["moments"] = measured_moments(program, samples.inputs)
            found["histograms"] = Histograms(samples.inputs)
        return found


def _lowered(
    recipe: Recipe, evidence: Evidence | None, save_ir: Path | None, options: CompileOptions, journal: Journal
) -> Lowered:
    observers: list[Observer] = [Verify(), *([SaveIR(save_ir)] if save_ir is not None else [])]
    numerics = None if evidence is None or not options.numerics else evidence.numerics()
    lowered = recipe.lower(observers=observers if numerics is None else [*observers, numerics])
    for name, error in () if numerics is None else numerics.errors:
        journal.note(f"numerics: scaled error {error:.1e} after {name}")
    return lowered


def write(
    folder: Path,
    attempts: Sequence[Attempt],
    evidence: Evidence | None,
    journal: Journal,
    left_out: tuple[Outcome, ...] = (),
    cached: Decision | None = None,
) -> Decision | None:
    """Build and prove the attempts, and put the one that is kept into ``folder``; how it was decided.

    ``left_out``: backends that are not attempted. ``cached``: the decision of an earlier compile of the same.
    Raises: CompileError.
    """
    with Draft(folder) as draft:
        choice = Choice(draft, evidence, journal, left_out, cached)
        attempt, result = choice.best(attempts)
        prefixes = measured_prefixes(attempt, result, evidence, journal)
        with journal.stage("write"):
            is_cut = attempt.options.mesh.size > 1
            if choice.built == 1 + attempt.options.keeps_source and not is_cut:
                finish(draft, folder, attempt, result, prefixes, evidence, journal)
                return result.decision
        # Candidates that were dropped left weights behind: write what was kept into a fresh draft.
        with Draft(folder) as clean:
            if is_cut:
                result = partitioned(clean, attempt, result, evidence, journal)
            with journal.stage("write"):
                if not is_cut:
                    result = moved(clean, attempt, result)
                finish(clean, folder, attempt, result, prefixes, evidence, journal)
                return result.decision
