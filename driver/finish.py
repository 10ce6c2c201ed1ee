"""The last step of a compile: golden data, report and manifest into the draft, the draft into its place."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from ..compiler.artifact import GOLDEN
from ..compiler.draft import Draft
from ..compiler.manifest import Certificate, Manifest
from ..compiler.options import CompileOptions
from ..compiler.parallel.writing import WEIGHTS as SHARE
from ..compiler.reference import Array
from ..runtime.conditions import cores, versions
from .choice import Attempt
from .context import variant_name
from .decide import Result
from .page import page_of
from .prefixes import Prefixes
from .progress import Journal
from .proof import Evidence, Proof
from .report import layers_of, pass_records, report, text_of
from .waterfall import waterfall
from .workbench import operators, signature


def finish(
    draft: Draft,
    folder: Path,
    attempt: Attempt,
    result: Result,
    prefixes: Prefixes,
    evidence: Evidence | None,
    journal: Journal,
) -> None:
    """Write golden data, report and manifest, and put the folder in its place."""
    options, source = attempt.options, attempt.recipe.source
    program = result.lowered.program
    records = pass_records(result.lowered, result.reverted)
    name = variant_name(options)
    variants = {name: replace(result.best.variant, passes=records)}
    if options.keeps_source and result.source is not None:
        variants["source"] = result.source.variant
    for leftover in (draft.path / "variants").iterdir():
        if leftover.name not in variants:
            draft.discard_variant(leftover.name)
    case = None if evidence is None else evidence.cases[0]
    if case is not None:
        draft.golden(case.inputs, case.expected)
    for file, asset in source.assets.items():
        draft.asset(file, asset)
    document = report(
        model=source.source.get("model", folder.stem),
        target=str(options.target),
        source=operators(source),
        best=result.best,
        passes=records,
        waterfall=waterfall(source, result, prefixes),
        layers=layers_of(result.lowered),
        trials=result.trials,
        proof=result.proof,
        race=result.race,
        threads=cores() if options.threads is None else options.threads,
        inputs={} if case is None else {name: _spelled(array) for name, array in case.inputs.items()},
        sizes=_sizes(draft),
        budget=None if attempt.settled is None else attempt.settled.report(),
        choice=None if result.decision is None else result.decision.to_json(),
        partition=result.partition,
        journal=journal,
    )
    draft.write_text("report.json", text_of(document))
    draft.write_text("report.html", page_of(document))
    draft.finish(
        Manifest(
            name=folder.stem,
            entries={entry: signature(program, entry) for entry in program.entries},
            variants=variants,
            default=name,
            dims=program.dims,
            call=program.call,
            decoding=program.decoding,
            layers=source.layers,
            source=program.source,
            options=_plain(options),
            plan=attempt.recipe.context.plan,
            environment=versions(),
            certificate=_certificate(result, name),
            source_entries={} if signature(source) == signature(program) else {"main": signature(source)},
            timings={} if document["latency"] is None else document["latency"],
        )
    )


def _spelled(array: Array) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _certificate(result: Result, variant: str) -> Certificate | None:
    return None if result.proof is None else _certified(result.proof, variant)


def _certified(proof: Proof, variant: str) -> Certificate:
    limit = proof.limit
    metric: Literal["scaled", "kl"] = "scaled" if limit.vocabulary is None else "kl"
    faithful = None if proof.faithful is None else _certified(proof.faithful, variant)
    return Certificate(proof.reference, proof.ok, limit.figure, proof.errors(), variant, metric, faithful)


def _sizes(draft: Draft) -> dict[str, int]:
    """Bytes on disk: weights, those of ranks too, models, golden data."""
    files = [path for path in (draft.path / "variants").rglob("*") if path.is_file()]
    shares = sum(path.stat().st_size for path in files if path.name == SHARE)
    models = sum(path.stat().st_size for path in files) - shares
    golden = draft.path / GOLDEN.format(entry="main")
    return {
        "weights": draft.weights.size + shares,
        "models": models,
        "golden": golden.stat().st_size if golden.exists() else 0,
    }


def _plain(options: CompileOptions) -> dict[str, object]:
    plain = asdict(options)
    plain["target"] = str(options.target)
    plain["inputs"] = [f"{s.name}:{'x'.join(map(str, s.shape))}" for s in options.inputs]
    plain["dims"] = {name: str(span) for name, span in options.dims}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}
