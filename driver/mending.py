"""Repair: an executable that exceeds its error is made again, with the least costly parts more precise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from math import isclose
from typing import Any

from ..compiler.artifact import Artifact
from ..compiler.errors import ArtifactError, CompileError, InternalError
from ..compiler.options import CompileOptions
from ..compiler.program import Program
from ..compiler.reference import Arrays
from ..frontends.load import load
from ..passes.pipeline import pipeline
from ..runtime.bench import BenchResult
from ..runtime.executable import SOURCE, Executable
from .budget import Settled, can_choose, held, opened_search
from .choice import Attempt
from .compilation import write
from .formats import Format
from .groups import Group
from .lower import Recipe
from .meter import Made, Meter
from .opening import open_folder
from .progress import Journal, Progress, Silent
from .proof import Case, Evidence
from .remade import recorded_options, recorded_recipe, recorded_samples, source_program
from .sensitivity import Row
from .verification import Check
from .widening import keep_wide, narrowing

SECONDS = 2.0
"""Spent on timing what was repaired against what it was."""


@dataclass(frozen=True, slots=True)
class Raised:
    """Weights that are kept in more bits than before."""

    weights: tuple[str, ...]
    before: str
    after: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Repair:
    """What a repair did and what it cost. ``error``: before and after, in the figure of ``budget``.

    ``raised``: groups of weights, ``kept``: nodes that stay in float32, ``left_out``: passes, with the
    reason. ``nbytes``: of the folder, before and after. ``race``: the repaired executable timed against the
    old one, None where it does not run.
    """

    budget: float
    error: tuple[float, float]
    raised: tuple[Raised, ...]
    kept: tuple[str, ...]
    left_out: Mapping[str, str]
    nbytes: tuple[int, int]
    race: BenchResult | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; seconds are medians, before and after."""
        seconds = None
        if self.race is not None:
            new, old = (each.latency.median for each in self.race.candidates)
            seconds = [old, new]
        return {
            "budget": self.budget,
            "error": list(self.error),
            "raised": [asdict(each) for each in self.raised],
            "kept": list(self.kept),
            "left_out": dict(self.left_out),
            "bytes": list(self.nbytes),
            "seconds": seconds,
        }


def repair(
    executable: Executable,
    found: Check,
    reference: object = None,
    inputs: Mapping[str, Any] | None = None,
    *,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Repair:
    """Write the executable's folder again so that its error is within ``tolerance``.

    Formats of weights are made finer group by group, the most error for the least cost first; a wrong pass
    is left out. The source is the variant kept in the folder, else ``reference``, a model. ``found``: what
    ``verify`` said. The folder is replaced at once; ``executable`` goes on with the old one.
    Raises: ArtifactError without a source, VerificationError if nothing is precise enough.
    """
    limit = executable.limit(tolerance)
    journal = Journal(Silent() if progress is None else progress)
    manifest = executable.manifest
    options = replace(recorded_options(manifest), budget=limit.figure)
    before = sum(file.size for file in manifest.files.values())
    with Artifact(executable.folder) as artifact, ExitStack() as stack:
        with journal.stage("import"):
            program, evidence = _source(artifact, reference, inputs, options)
        recipe = recorded_recipe(artifact, program, options, journal)
        settled: Settled | None = None
        raised: list[Raised] = []
        kept: list[str] = []
        if found.culprit is not None and (narrow := narrowing(recipe.pipeline, found.culprit.pass_name)):
            options, kept = keep_wide(recipe, options, evidence, found.culprit, narrow, journal)
            recipe = replace(recipe, pipeline=pipeline(options))
        elif can_choose(recipe, options):
            settled, raised = _raised(artifact, recipe, options, evidence, found, journal)
            recipe = replace(recipe, context=replace(recipe.context, plan=settled.plan))
        with journal.stage("transform"):
            attempt = Attempt(options, recipe, recipe.lower(), settled)
        write(executable.folder, [attempt], evidence, journal)
        new = stack.enter_context(open_folder(executable.folder))
        certificate = new.manifest.certificate
        if certificate is None:
            raise InternalError("a repair was written without a proof")
        records = new.manifest.variants[new.manifest.default].passes
        return Repair(
            limit.figure,
            (found.verification.error, certificate.error),
            tuple(raised),
            tuple(kept),
            {record.name: record.reverted for record in records if record.reverted},
            (before, sum(file.size for file in new.manifest.files.values())),
            _race(new, executable, journal),
        )


def _source(
    artifact: Artifact, reference: object, inputs: Mapping[str, Any] | None, options: CompileOptions
) -> tuple[Program, Evidence]:
    """The imported program and what it computes: of the model given, else of the folder's own."""
    golden = artifact.golden()
    kept = SOURCE in artifact.manifest.variants
    if reference is None and not (kept and golden is not None):
        fact = (
            "keeps neither the source model nor anything to compare with" if not kept else "keeps no outputs"
        )
        raise ArtifactError(str(artifact.folder), fact, "give the source with --reference MODEL")
    if reference is None:
        assert golden is not None
        name = artifact.manifest.source.get("framework", "source")
        return source_program(artifact), Evidence(f"golden outputs of {name}", (Case(*golden),))
    imported = load(reference, options, None)
    if golden is not None:
        imported.examples = dict(golden[0])
    evidence = Evidence.of(imported, options.seed)
    if inputs is not None:
        arrays: Arrays = dict(inputs)
        cases = (Case(arrays, imported.reference.run(arrays)), *evidence.cases)
        evidence = replace(evidence, cases=cases)
    return imported.program, evidence


def _raised(
    artifact: Artifact,
    recipe: Recipe,
    options: CompileOptions,
    evidence: Evidence,
    found: Check,
    journal: Journal,
) -> tuple[Settled, list[Raised]]:
    """Finer formats for some groups, until the whole holds ``options.budget`` as it is built."""
    assert options.budget is not None
    samples = recorded_samples(artifact, recipe.source, options)
    with opened_search(recipe, options, samples.inputs, evidence, journal) as (search, meter):
        start = _recorded(meter, search.rows, artifact.manifest.plan)
        rows = {group: [*search.rows[group], start[group]] for group in meter.groups}
        search.rows = rows
        with journal.stage("choose"):
            error = meter.metric.additive(found.verification.error)
            chosen, least = search.raised(start, max(error, search.measured(start)))
            if chosen is not None:  # the last step may have taken more than was needed
                search.rows = {g: [r for r in rows[g] if r.error <= start[g].error] for g in rows}
                other, found_error = search.run()
                if other is not None and search.total(other) < search.total(chosen):
                    chosen, least = other, found_error
        settled = held(chosen, meter.metric, options.budget, least)
    raised = [
        Raised(group.weights, start[group].format.label, row.format.label, row.nbytes - start[group].nbytes)
        for group, row in settled.rows.items()
        if row.format.options != start[group].format.options
    ]
    return settled, raised


def _recorded(
    meter: Meter, rows: Mapping[Group, Sequence[Row]], plan: Mapping[str, Mapping[str, str]]
) -> dict[Group, Row]:
    """The row of every group that the folder was made with; measured if it is none that was offered."""
    found = {}
    for group, offered in rows.items():
        options = tuple((s.name, plan.get(s.name, {}).get(group.weights[0], "")) for s in meter.passes)
        row = next((row for row in offered if row.format.planned == options), None)
        made = None if row is not None else meter.made(group, Format("as it was", options))
        if row is None and made is None:  # the pass leaves these weights alone
            row = next(row for row in offered if row.error == 0)
        elif row is None and made is not None:
            row = next((row for row in offered if _equals(row, made)), None)
            if row is None:
                error = meter.error(made.swapped)
                row = Row(group, Format("as it was", options), error, made.local, made.nbytes, made.read)
                row = replace(row, elsewhere=made.elsewhere)
        assert row is not None
        found[group] = row
    return found


def _equals(row: Row, made: Made) -> bool:
    return (row.nbytes, row.read) == (made.nbytes, made.read) and isclose(row.local, made.local, rel_tol=1e-5)


def _race(new: Executable, old: Executable, journal: Journal) -> BenchResult | None:
    try:
        with journal.stage("time"):
            return new.bench(against=old, seconds=SECONDS)
    except CompileError as error:
        journal.note(f"not timed: {error}")
        return None
