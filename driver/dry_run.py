"""Dry run: the pipeline on the imported program, nothing built."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..compiler.manifest import PassRecord
from ..compiler.options import CompileOptions
from ..frontends.load import load
from ..passes.observers import Verify
from .candidates import candidates, summary
from .context import context_of, unsupported
from .lower import Recipe
from .progress import Journal, Progress, Silent
from .report import SCHEMA, Json, pass_records
from .workbench import operators


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a compile would do: passes with hits and reasons, operators before and after, what can't run."""

    model: str
    target: str
    passes: tuple[PassRecord, ...]
    before: dict[str, int]
    after: dict[str, int]
    unsupported: tuple[str, ...]

    @property
    def report(self) -> Json:
        """As plain JSON, in the shape of a compile's report."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "target": self.target,
            "passes": [asdict(record) for record in self.passes],
            "ops": {"before": self.before, "after": self.after},
            "nodes": {"before": sum(self.before.values()), "after": sum(self.after.values())},
            "unsupported": list(self.unsupported),
        }


def plan(
    source: object, options: CompileOptions, *, inputs: object = None, progress: Progress | None = None
) -> DryRun:
    """Run the pipeline and build nothing: what would fire, what was declined and why.

    With backend ``auto`` it is the pipeline of the first backend that could build the result.
    """
    journal = Journal(Silent() if progress is None else progress)
    with journal.stage("import"):
        imported = load(source, options, inputs)
    tried = candidates(imported.program, options, journal).tried
    for candidate in tried:
        recipe = Recipe(imported.program, candidate.passes, context_of(candidate.options))
        with journal.stage("transform"):
            lowered = recipe.lower(observers=[Verify()])
        problems = unsupported(lowered.program, candidate.options)
        if not problems or candidate is tried[-1]:
            break
        journal.note(f"no {candidate.options.backend} code: {summary(problems)}")
    return DryRun(
        model=imported.program.source.get("model", ""),
        target=str(options.target),
        passes=pass_records(lowered, {}),
        before=operators(imported.program),
        after=operators(lowered.program),
        unsupported=tuple(map(str, problems)),
    )
