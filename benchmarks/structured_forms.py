"""The forms bench_structured times: dense, and without channels and heads; built once, kept between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import approximated
import miaotui
from approximated import WORK, Case
from bench_decode import hugging_face_folder
from bench_encoder import TOKENS, bert, inputs_of, minilm
from bench_sparsity import mlp
from miaotui.compiler.cost import program_cost
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.program import Program
from miaotui.frontends.load import load
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.logits import is_logits
from miaotui.passes.observers import run_pipeline
from miaotui.passes.pipeline import asked
from miaotui.passes.raising import RAISING

PROMPT = 128
"""Tokens of a prompt."""

FORMS: Mapping[str, Mapping[str, Any]] = {
    "dense": {},
    "MLP channels 30%": {"enable": ("prune-channels{share=0.3}",)},
    "channels 30%": {"sparsity": "channels:0.3"},
    "heads 25%, channels 30%": {"sparsity": "heads:0.25,channels:0.3"},
}
"""By name: what compile is told."""

MODELS = ("mlp", "minilm", "bert", "smollm2")
BACKENDS = ("native", "ort")
LEGS = tuple(f"{model}-{backend}" for model in MODELS for backend in BACKENDS)
"""What can be built and timed by itself."""


def forms_of(model: str) -> tuple[str, ...]:
    """Those that are different: an MLP has no heads."""
    return ("dense", "channels 30%") if model == "mlp" else tuple(FORMS)


FOLDER = WORK / "structured-executables"


def folder_of(leg: str, form: str) -> Path:
    """The executable of a form."""
    return FOLDER / f"{leg}-{form.replace(', ', '-').replace(' ', '-').replace('%', '')}"


def build(legs: Sequence[str]) -> None:
    """Every executable, and what is left of the operations in it, that is not there yet."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for model in MODELS:
        chosen = [leg for leg in legs if leg.startswith(model)]
        missing = [
            (leg, form) for leg in chosen for form in forms_of(model) if not folder_of(leg, form).exists()
        ]
        unknown = [leg for leg in chosen if not (FOLDER / f"{leg}.json").is_file()]
        if not missing and not unknown:
            continue
        source, inputs = _source(model)
        for leg, form in missing:
            output = folder_of(leg, form)
            print(f"  building {output.name}", flush=True)
            miaotui.compile(
                source, inputs, output=output, backend=leg.partition("-")[2],
                verify=False, keep_source=False, timing=0.0, **FORMS[form],
            ).close()  # fmt: skip
        for leg in unknown:
            found = _shares(leg, source, inputs)
            (FOLDER / f"{leg}.json").write_text(json.dumps(found), encoding="utf-8")


def shares(leg: str) -> dict[str, dict[str, float]]:
    """By what is run and by form: the share of the dense model's operations that is left."""
    found: dict[str, dict[str, float]] = json.loads((FOLDER / f"{leg}.json").read_text(encoding="utf-8"))
    return found


def _source(model: str) -> tuple[Any, Any]:
    """What is compiled, and its example inputs."""
    if model == "smollm2":
        return hugging_face_folder(WORK / "smollm2"), None
    if model == "mlp":
        return mlp()
    return (minilm if model == "minilm" else bert)(), inputs_of(2, 11)


def _shares(leg: str, source: Any, inputs: Any) -> dict[str, dict[str, float]]:
    model, _, backend = leg.partition("-")
    program = load(source, CompileOptions(), inputs).program
    program.entries = {"main": program.main}
    run_pipeline(program, [*CLEANUP, *RAISING, *CLEANUP], PassContext())
    kinds = {"prompt": PROMPT, "decode": 1} if model == "smollm2" else {"encode": TOKENS}
    made: dict[str, dict[str, float]] = {}
    for form in forms_of(model):
        options = CompileOptions(**{**FORMS[form], "backend": backend})
        specs = (*asked(options), *options.enable)
        cut, _ = approximated.approximated(program, Case(form, specs), {}) if specs else (program, None)
        for kind, tokens in kinds.items():
            made.setdefault(kind, {})[form] = _operations(cut, kind, tokens)
    return {kind: {f: flops / found["dense"] for f, flops in found.items()} for kind, found in made.items()}


def _operations(program: Program, kind: str, tokens: int) -> float:
    """Of one sequence of ``tokens``; of a prompt the output layer computes the last one's logits alone."""
    sizes: Mapping[str, int] = {"batch": 1, "sequence": tokens}
    symbols = {str(d) for spec in program.inputs() for d in spec.shape or () if not isinstance(d, int)}
    table = program_cost(program, {name: sizes.get(name, tokens) for name in symbols})
    heads = {node.name for node in program.main.graph if kind == "prompt" and is_logits(node.outputs[0])}
    return sum(row.flops * row.runs / (tokens if row.node in heads else 1) for row in table.rows)
