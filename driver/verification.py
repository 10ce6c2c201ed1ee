"""Verify an executable folder; where it fails, say which pass and node are to blame."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compiler.artifact import Artifact, check
from ..compiler.draft import Draft
from ..compiler.errors import InternalError
from ..compiler.reference import Arrays
from ..runtime.compare import Limit
from ..runtime.executable import SOURCE, Executable, Verification
from .bisect import Culprit, find_culprit
from .context import backend_of
from .opening import resolve
from .proof import Case, Evidence, prove
from .remade import recorded_options, recorded_recipe, source_program
from .workbench import Workbench


@dataclass(frozen=True, slots=True)
class Check:
    """The comparison, and if it failed and could be bisected, the culprit. ``why`` says why it could not."""

    verification: Verification
    culprit: Culprit | None = None
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether all outputs are within the tolerance."""
        return self.verification.ok


def verify(
    executable: Executable,
    reference: object = None,
    inputs: Mapping[str, Any] | None = None,
    *,
    tolerance: float | None = None,
    layers: bool = True,
    bisect: bool = True,
) -> Check:
    """Check every file's hash, then compare with golden data or ``reference``; on excess, bisect.

    Raises: ArtifactError if a file is damaged, or there is nothing to compare with.
    """
    check(executable.folder)
    found = executable.verify(reference, inputs, tolerance=tolerance, layers=layers)
    if found.ok or not bisect:
        return Check(found)
    if SOURCE not in executable.manifest.variants:
        return Check(found, why="the source variant was not kept: compile with --keep-source to bisect")
    culprit = _bisected(executable, reference, inputs, executable.limit(tolerance))
    why = "" if culprit else "the pipeline gives a right result now: compile the model again"
    return Check(found, culprit, why)


def _bisected(
    executable: Executable, reference: object, inputs: Mapping[str, Any] | None, limit: Limit
) -> Culprit | None:
    """Run the pipeline that made the executable again, on the source variant."""
    options = recorded_options(executable.manifest)
    with Artifact(executable.folder) as artifact, tempfile.TemporaryDirectory() as scratch:
        case = _case(artifact, reference, inputs)
        recipe = recorded_recipe(artifact, source_program(artifact), options)
        record = artifact.variant()[1]
        reverted = frozenset(p.name for p in record.passes if p.reverted)
        with Draft(Path(scratch, "bisect")) as draft:
            bench = Workbench(draft, backend_of(options), options.target)
            return find_culprit(
                recipe,
                bench,
                case.inputs,
                limit.scaled,
                lambda lowered, built: prove(built, Evidence("", (case,)), limit, options.threads).ok,
                reverted,
                lossy=True,
            )


def _case(artifact: Artifact, reference: object, inputs: Mapping[str, Any] | None) -> Case:
    golden = artifact.golden()
    if reference is None:
        if golden is None:
            raise InternalError("verified without golden data or a reference")
        return Case(*golden)
    arrays: Arrays = dict(inputs) if inputs is not None else golden[0] if golden else {}
    return Case(arrays, resolve(reference, artifact.manifest).run(arrays))
