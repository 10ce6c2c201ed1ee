"""Compile: import, transform, build, prove, time, write. Reads top to bottom as it happens."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..compiler.draft import Draft
from ..compiler.options import CompileOptions
from ..frontends.load import load
from ..passes.base import Pass
from ..passes.observers import Observer, SaveIR, Verify
from ..passes.pipeline import pipeline
from ..runtime.executable import Executable
from .calibration import measured_channels, measured_ranges
from .context import backend_of, check_placement, context_of, variant_name
from .decide import Judge, Result
from .finish import finish
from .lower import Lowered, Recipe
from .opening import open_folder
from .progress import Journal, Progress, Silent
from .proof import Evidence
from .workbench import Workbench


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
    steps = pipeline(options) if passes is None else passes
    journal = Journal(Silent() if progress is None else progress)
    with journal.stage("import"):
        imported = load(source, options, inputs)
    evidence = None
    if options.verify:
        with journal.stage("reference"):
            evidence = Evidence.of(imported, options.seed)
    context = context_of(options)
    if evidence is not None and options.precision == "fp16":
        with journal.stage("calibrate"):
            inputs_seen = [case.inputs for case in evidence.cases]
            context.ranges = measured_ranges(imported.program, backend_of(options), inputs_seen)
    if evidence is not None and options.precision in ("int8", "int4"):
        with journal.stage("calibrate"):
            inputs_seen = [case.inputs for case in evidence.cases]
            context.channels = measured_channels(imported.program, backend_of(options), inputs_seen)
    recipe = Recipe(imported.program, steps, context)
    del imported  # the source's session or module: its memory is needed now
    with journal.stage("transform"):
        observers: list[Observer] = [Verify(), *([SaveIR(save_ir)] if save_ir is not None else [])]
        numerics = None if evidence is None or not options.numerics else evidence.numerics()
        lowered = recipe.lower(observers=observers if numerics is None else [*observers, numerics])
        for name, error in () if numerics is None else numerics.errors:
            journal.note(f"numerics: scaled error {error:.1e} after {name}")
        check_placement(lowered.program, options, journal)

    temporary = Path(tempfile.mkdtemp(prefix="miaotui-")) if output is None else None
    folder = temporary or Path(str(output))
    try:
        _write(folder, recipe, lowered, evidence, options, journal)
        return open_folder(folder, temporary=temporary is not None)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write(
    folder: Path,
    recipe: Recipe,
    lowered: Lowered,
    evidence: Evidence | None,
    options: CompileOptions,
    journal: Journal,
) -> None:
    with Draft(folder) as draft:
        bench = Workbench(draft, backend_of(options), options.target)
        with journal.stage("build"):
            source = bench.source(recipe.source) if options.keeps_source else None
            result = Result(lowered, bench.optimized(lowered, variant_name(options)), source)
        if evidence is not None:
            result = Judge(bench, recipe, evidence, options, journal).judged(result)
        with journal.stage("write"):
            if bench.built == 1 + options.keeps_source:
                finish(draft, folder, recipe.source, result, evidence, options, journal)
                return
            # Candidates that were dropped left weights behind: write what was kept into a fresh draft.
            with Draft(folder) as clean:
                bench = Workbench(clean, backend_of(options), options.target)
                source = bench.source(recipe.source) if options.keeps_source else None
                best = bench.optimized(result.lowered, variant_name(options))
                result = replace(result, source=source, best=best)
                finish(clean, folder, recipe.source, result, evidence, options, journal)
