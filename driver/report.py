"""What a compile did, as plain JSON with a stable schema: stages, passes, operators, error, latency."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..compiler.manifest import PassRecord
from ..runtime.bench import BenchResult, Measured
from .lower import Lowered
from .never_slower import Trial
from .progress import Journal
from .proof import Proof
from .workbench import Built

SCHEMA = 2
"""Version of the report's layout; 2 has ``waterfall``, ``budget``."""

Json = dict[str, Any]


def pass_records(lowered: Lowered, reverted: Mapping[str, str]) -> tuple[PassRecord, ...]:
    """One record a pass as it ran, and one for each that was reverted, with the reason."""
    kept = tuple(
        PassRecord(
            name=s.step.name,
            changed=s.result.changed,
            hits=tuple(map(str, s.result.hits)),
            declined=tuple(map(str, s.result.declined)),
            seconds=round(s.seconds, 4),
        )
        for s in lowered.steps
    )
    return kept + tuple(PassRecord(name, reverted=reason) for name, reason in reverted.items())


def layers_of(lowered: Lowered) -> list[Json]:
    """What was taken out of each weight, pass by pass: ``density``, the share that stays; ``gain``: times as
    fast as dense float32, by the table measured on the backend's kernels, null where smaller dense matrices
    are multiplied.
    """
    return [
        {
            "weight": note.node,
            "pass": step.step.name,
            "rank": None,
            "gain": None,
            "method": None,
            **note.facts,
        }
        for step in lowered.steps
        for note in step.result.hits
        if "density" in note.facts
    ]


def report(
    *,
    model: str,
    target: str,
    source: Mapping[str, int],
    best: Built,
    passes: tuple[PassRecord, ...],
    waterfall: Json,
    layers: list[Json],
    trials: tuple[Trial, ...],
    proof: Proof | None,
    race: BenchResult | None,
    threads: int,
    inputs: Mapping[str, str],
    sizes: Mapping[str, int],
    budget: Json | None,
    choice: Json | None,
    partition: Mapping[str, Any] | None,
    journal: Journal,
) -> Json:
    """The report; ``error`` and ``latency`` are null where nothing was proved or timed, ``budget`` where none
    was set: what it chose for each group of weights, with its errors and bytes. ``faithful`` of ``error``:
    the same against the program with pruned and factored weights, null where there are none. ``choice``: what
    became of each backend that could have been taken, null where one was asked for. ``partition``: mesh,
    stages and transfers, null for a program in one piece.
    """
    gains = {trial.name: trial.gain for trial in trials}
    return {
        "schema": SCHEMA,
        "model": model,
        "target": target,
        "stages": [{"name": name, "seconds": round(seconds, 3)} for name, seconds in journal.stages],
        "passes": [
            {**asdict(record), "gain": asdict(gains[record.name]) if record.name in gains else None}
            for record in passes
        ],
        "waterfall": waterfall,
        "layers": layers,
        "ops": {"before": dict(source), "after": dict(best.variant.operators)},
        "nodes": {"before": sum(source.values()), "after": best.variant.nodes},
        "error": None if proof is None else _error(proof),
        "latency": None if race is None else _latency(race, threads, inputs),
        "sizes": dict(sizes),
        "budget": budget,
        "choice": choice,
        "partition": None if partition is None else dict(partition),
        "notes": list(journal.notes),
    }


def text_of(document: Json) -> str:
    """The report as the text of ``report.json``; infinities, which JSON lacks, as text."""
    return json.dumps(document, indent=1, ensure_ascii=False, default=str) + "\n"


def _error(proof: Proof) -> Json:
    worst = proof.worst
    return {
        "scaled": 0.0 if worst is None else worst.scaled,
        "metric": "scaled" if proof.limit.vocabulary is None else "kl",
        "tolerance": proof.limit.figure,
        "ok": proof.ok,
        "reference": proof.reference,
        "outputs": proof.errors(),
        "faithful": None if proof.faithful is None else _error(proof.faithful),
    }


def _latency(race: BenchResult, threads: int, inputs: Mapping[str, str]) -> Json:
    optimized, source = race.candidates
    speed = optimized.speedup
    return {
        "source": _seconds(source),
        "optimized": _seconds(optimized),
        "ratio": None if speed is None else speed.ratio,
        "ci95": None if speed is None else [speed.low, speed.high],
        "verdict": None if speed is None else speed.verdict,
        "threads": threads,
        "inputs": dict(inputs),
    }


def _seconds(measured: Measured) -> Json:
    latency = asdict(measured.latency)
    return {**latency, "p50": latency["median"], "load": measured.load, "first_call": measured.first_call}
