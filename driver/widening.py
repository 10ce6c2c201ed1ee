"""Nodes kept in float32, one after the other, until a program narrowed to 16 bits is precise enough."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..compiler.draft import Draft
from ..compiler.errors import VerificationError
from ..compiler.options import CompileOptions
from ..passes.base import Pass
from ..passes.pipeline import pipeline
from .bisect import Culprit, find_culprit
from .context import backend_of
from .decide import Judge
from .lower import Recipe
from .progress import Journal
from .proof import Evidence, prove
from .workbench import Workbench

TRIES = 16
"""Nodes that are widened at most; operators of a kind count as one from the third of them on."""

_PLAIN = re.compile(r"[^,+={}]+")
"""Names that a pass's options can spell."""


def narrowing(passes: Sequence[Pass], name: str) -> Pass | None:
    """The pass called ``name`` if it can leave single nodes in float32."""
    found = (step for step in passes if step.name == name and hasattr(step, "keep_nodes"))
    return next(found, None)


def keep_wide(
    recipe: Recipe,
    options: CompileOptions,
    evidence: Evidence,
    culprit: Culprit | None,
    narrow: Pass,
    journal: Journal,
) -> tuple[CompileOptions, list[str]]:
    """Options that keep float32 where errors begin, and what is kept: names of nodes, and operators.

    Raises: VerificationError if that is not enough.
    """
    keep: list[str] = list(getattr(narrow, "keep", ()))
    nodes: list[str] = list(getattr(narrow, "keep_nodes", ()))
    widened: list[str] = []
    with tempfile.TemporaryDirectory(prefix="miaotui-") as folder, Draft(Path(folder, "try")) as draft:
        for _ in range(TRIES):
            if culprit is None or culprit.pass_name != narrow.name or not culprit.op_type:
                break
            often = sum(kind == culprit.op_type for kind in widened) > 1
            if often or culprit.node in nodes or not _PLAIN.fullmatch(culprit.node):
                keep.append(culprit.op_type)
            else:
                nodes.append(culprit.node)
            widened.append(culprit.op_type)
            text = ",".join(f"{k}={'+'.join(v)}" for k, v in (("keep", keep), ("keep_nodes", nodes)) if v)
            wider = replace(options, enable=(*options.enable, f"{narrow.name}{{{text}}}"))
            changed = replace(recipe, pipeline=pipeline(wider))
            bench = Workbench(draft, backend_of(wider), wider.target)
            judge = Judge(bench, changed, evidence, wider, journal)
            built = bench.optimized(changed.lower(), "try")
            if prove(built, evidence, judge.limit(built), wider.threads).ok:
                return wider, [*nodes, *keep]
            culprit = find_culprit(
                changed,
                bench,
                evidence.cases[0].inputs,
                judge.limit(built).scaled,
                lambda _, b, judge=judge: prove(b, evidence, judge.limit(b), options.threads).ok,  # type: ignore[misc]
                lossy=True,
            )
    fact = f"is not enough with {', '.join([*nodes, *keep])} in float32"
    raise VerificationError(narrow.name, fact, "compile with --precision fp32")
