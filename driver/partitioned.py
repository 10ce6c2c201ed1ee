"""The last step of a compile for a mesh: what was kept is written in parts, proved again, and timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..compiler.draft import Draft
from ..compiler.errors import VerificationError
from ..compiler.manifest import Variant
from ..compiler.parallel.mesh import Mesh
from ..compiler.parallel.plan import PLAN, Plan
from ..compiler.parallel.summary import described
from ..runtime.parallel.runner import ParallelModel
from .choice import Attempt
from .decide import Judge, Result
from .lower import Lowered
from .partition import write_plan
from .progress import Journal
from .proof import Evidence
from .workbench import Built, Workbench, operators, signature, tensor_bytes


def partitioned(
    draft: Draft, attempt: Attempt, result: Result, evidence: Evidence | None, journal: Journal
) -> Result:
    """``result``, a program in one piece, written into ``draft`` as the parts of the mesh that was asked for.

    Its parts are proved by themselves, run by threads. Raises: OptionError for a mesh that it can't be put
    on, VerificationError if its parts don't give what it gave in one piece.
    """
    options = attempt.options
    bench = Workbench(draft, options.backend, options.target)
    with journal.stage("partition"):
        source = bench.source(attempt.recipe.source) if options.keeps_source else None
        best, plan = in_parts(bench, result.lowered, attempt.name, options.mesh, options.memory, journal.note)
    result = replace(result, best=best, source=source, race=None, partition=described(plan))
    if evidence is None or result.proof is None:
        return result
    judge = Judge(bench, attempt.recipe, evidence, options, journal)
    with journal.stage("verify"):
        proof = judge.proof_of(result.lowered, best)
    if (failed := proof.failed) is not None:
        facts = "; ".join(str(item) for item in failed.found if not item.ok)
        fact = f"differs from {failed.reference}, which the program in one piece does not: {facts}"
        raise VerificationError(
            f"mesh {options.mesh}", fact, "compile without --dp, --pp and --tp, and report it"
        )
    result = replace(result, proof=proof)
    if options.timing <= 0 or source is None:
        return result
    with journal.stage("time"):
        return judge.raced(result)


def in_parts(
    bench: Workbench,
    lowered: Lowered,
    name: str,
    mesh: Mesh,
    memory: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Built, Plan]:
    """A lowered program as variant ``name``, run by the ranks of a plan. Raises: OptionError."""
    program = lowered.program
    folder = bench.draft.variant(name)
    plan = write_plan(program, mesh, bench.backend, bench.target, folder, memory, note)
    bench.built += 1
    variant = Variant(
        role="optimized",
        target=str(bench.target),
        backend=bench.backend.name,
        entries=dict.fromkeys(program.entries, f"variants/{name}/{PLAN}"),
        operators=operators(program),
    )
    models = {
        entry: ParallelModel(
            folder=folder,
            signature=signature(program, entry),
            entry=entry,
            decoding=program.decoding,
            dims=program.dims,
            target=bench.target,
            place=name,
        )
        for entry in program.entries
    }
    built = Built(name, variant, models, tensor_bytes(program), program.decoding, bench.draft.path)
    return built, plan
