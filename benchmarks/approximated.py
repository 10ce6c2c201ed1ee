"""What passes cost real weights: SmolLM2's perplexity and divergence, the cosine of MiniLM's embeddings."""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_decode import hugging_face_folder
from bench_quantization import COUNT, Imported, calibrated, session, source_of
from corpus import documentation
from interleave import Arrays
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.program import Program
from miaotui.driver.calibration import measured_moments
from miaotui.frontends.load import load
from miaotui.passes.base import PassContext, PassResult, parse_pass_spec
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.moments import Moments
from miaotui.passes.observers import run_pipeline
from miaotui.passes.pipeline import all_passes
from miaotui.passes.raising import RAISING
from perplexity import Score, Scores

SENTENCES, LONGEST = 128, 64
WORK = Path("/tmp/miaotui-bench-quantization")
"""Kept between runs; the source's hidden states are those of bench_quantization."""
MINILM = f"MiniLM, cosine of the mean embedding of {SENTENCES} sentences with the source's:"


@dataclass(frozen=True, slots=True)
class Case:
    """``label``, and the passes it stands for, as on the command line."""

    label: str
    passes: tuple[str, ...]


def approximated(program: Program, case: Case, moments: Moments) -> tuple[Program, PassResult]:
    """A copy after the passes; the result of the first."""
    copy = program.clone()
    steps = []
    for spec in case.passes:
        name, options = parse_pass_spec(spec)
        steps.append(all_passes()[name].with_options(options))
    results = run_pipeline(copy, steps, PassContext(moments=moments))
    run_pipeline(copy, CLEANUP, PassContext())
    return copy, results[0][1]


def smollm2(work: Path = WORK) -> Imported:
    """SmolLM2-135M-Instruct, dequantized, as it is when passes approximate its weights."""
    work.mkdir(parents=True, exist_ok=True)
    return Imported(hugging_face_folder(work / "smollm2"))


def smollm2_scores(
    work: Path, name: str, cases: Sequence[Case], windows: int, threads: int | None, known: bool = False
) -> dict[str, tuple[Score, dict[str, Any]]]:
    """By label: on the first ``windows`` of bench_quantization's; calibrated on its calibration text.

    What is in ``work`` already is not measured again; ``known``: only that is told.
    """
    scores = Scores(work / f"{name}.json")
    chosen = sorted(range(COUNT), key=lambda w: (w % 5 != 0, w))[:windows]
    missing = [case for case in cases if scores.missing(case.label, chosen)]
    if known:
        cases = [case for case in cases if case not in missing]
    elif missing:
        _measure(work, scores, missing, chosen, threads)
    return {c.label: (Score.of(scores.windows(c.label, chosen)), scores.facts(c.label)) for c in cases}


def _measure(
    work: Path, scores: Scores, cases: Sequence[Case], chosen: Sequence[int], threads: int | None
) -> None:
    imported = smollm2(work)
    source, moments = source_of(work, imported, threads), calibrated(work, imported.program, "documentation")
    for case in cases:
        made, result = approximated(imported.program, case, moments)
        facts: dict[str, Any] = {
            "changed": result.changed,
            "declined": len(result.declined),
            "weights": _elements(made),
        }
        if result.declined:
            facts["reason"] = result.declined[0].text
        scores.keep(case.label, facts)
        with session(made, threads=threads) as runner:

            def logits(ids: Any, runner: Any = runner) -> Any:
                return next(iter(runner.run({"input_ids": ids[None]}).values()))[0]

            scores.measure(case.label, logits, source, chosen)
        del made, runner
        gc.collect()
        score = Score.of(scores.windows(case.label, chosen))
        print(f"  {case.label}: perplexity {score.perplexity:.2f}, KL {score.kl:.4f}", file=sys.stderr)


def _elements(program: Program) -> int:
    """Of all matrices that products read, each once."""
    found = {
        id(v.const_value): v.const_value.size
        for v in program.main.graph.initializers.values()
        if v.const_value is not None and len(v.const_value.shape) == 2 and v.const_value.size > 4096
    }
    return sum(found.values())


def minilm() -> Program:
    """The package's sentence encoder, as it is when passes approximate its weights."""
    from support.models import minilm_folder

    program = load(minilm_folder(), CompileOptions()).program
    run_pipeline(program, [*CLEANUP, *RAISING, *CLEANUP], PassContext())
    return program


def minilm_scores(
    work: Path, name: str, cases: Sequence[Case], threads: int | None, known: bool = False
) -> dict[str, dict[str, float]]:
    """By label: mean and least cosine of the mean embedding of ``SENTENCES`` sentences with the source's.

    What is in ``work`` already is not measured again; ``known``: only that is told.
    """
    file = work / f"{name}-minilm.json"
    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
    missing = [case for case in cases if case.label not in found]
    if known or not missing:
        return {case.label: found[case.label] for case in cases if case.label in found}
    program = minilm()
    calibration, evaluation = (sentences(program, text) for text in documentation())
    moments = measured_moments(program, calibration, threads)
    wanted = embeddings(program, evaluation, threads)
    for case in missing:
        made, result = approximated(program, case, moments)
        got = embeddings(made, evaluation, threads)
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
        cosine = (got * wanted).sum(1) / norms
        found[case.label] = {
            "mean": float(cosine.mean()), "least": float(cosine.min()), "changed": result.changed,
            "declined": len(result.declined), "weights": _elements(made),
        }  # fmt: skip
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"  {case.label}: cosine {cosine.mean():.4f}", file=sys.stderr)
    return {case.label: found[case.label] for case in cases}


def embeddings(program: Program, inputs: Sequence[Arrays], threads: int | None) -> Any:
    """float32[sentences, hidden]: the mean of the hidden states."""
    with session(program, threads=threads) as runner:
        return np.stack([runner.run(arrays)["last_hidden_state"][0].mean(0) for arrays in inputs])


def sentences(program: Program, text: str) -> list[Arrays]:
    """``SENTENCES`` sentences of some length, spread over the text, as the program's inputs."""
    from support.models import minilm_folder
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.no_padding()
    found = [s for p in text.split("\n\n") for s in " ".join(p.split()).split(". ") if 60 < len(s) < 300]
    names = [spec.name for spec in program.inputs()]
    made = []
    for index in range(SENTENCES):
        ids = np.array([tokenizer.encode(found[index * len(found) // SENTENCES]).ids], np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        made.append({name: given[name] for name in names})
    return made


def arguments(about: str | None, *parts: str, legs: Sequence[str] = ()) -> argparse.Namespace:
    """What a benchmark of real weights is told: which part, how much text, and whether to measure anew.

    ``parts``: further ones that it has. ``legs``: what it builds and times, which ``--only`` chooses from.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--part", choices=("accuracy", *parts, "timing", "all"), default="all")
    parser.add_argument("--windows", type=int, default=8, help="of 512 tokens, for SmolLM2")
    parser.add_argument("--threads", type=int, help="of the accuracy part")
    parser.add_argument("--known", action="store_true", help="tell what was measured, measure no errors")
    if legs:
        parser.add_argument("--only", nargs="+", choices=legs, default=legs, help="what is built and timed")
    return parser.parse_args()
