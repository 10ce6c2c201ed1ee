"""Low rank: rank against error and time on SmolLM2 and MiniLM, and where the compiler declines it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import approximated
import interleave as shared
import miaotui
from approximated import WORK, Case, arguments, minilm_scores, smollm2_scores
from bench_decode import hugging_face_folder
from bench_encoder import TOKENS, inputs_of, minilm
from bench_structured import NEAR, NEW, Row, raced, store, timing_table, written
from engines import Ours
from miaotui.passes.base import PassContext
from miaotui.passes.lowrank import FactorWeights
from perplexity import Score
from structured_forms import BACKENDS, PROMPT

RANKS = (0.9, 0.7, 0.5, 0.3)
HEAD = "keep=lm_head"


def ranked(rank: float, options: str = "") -> Case:
    label = f"rank {rank}" + (f", {options}" if options else "")
    return Case(label, (f"factor-weights{{rank={rank},{options}{',' if options else ''}force=true,{HEAD}}}",))


def lossy(loss: float) -> Case:
    return Case(f"loss {loss:.0%} a layer", (f"factor-weights{{loss={loss},{HEAD}}}",))


CASES = (
    *(ranked(rank) for rank in RANKS),
    ranked(0.7, "join=false"), lossy(0.01), lossy(0.05),
    Case("rank 0.7, then int8", (f"factor-weights{{rank=0.7,bits=8,{HEAD}}}", "quantize-weights")),
)  # fmt: skip


def accuracy(windows: int, threads: int | None, known: bool) -> list[str]:
    """Tables of both models."""
    found = smollm2_scores(WORK, "lowrank", CASES, windows, threads, known)
    source = next((score for score, _ in found.values()), Score(0, 0.0, 0.0, 0.0, 0.0))
    lines = [
        f"SmolLM2-135M, {source.tokens:,} tokens of Python's documentation, source's perplexity "
        f"{source.source:.2f}; calibrated on 8,192 tokens of other topics:", "",
        "| rank, of what is as large | factored | left whole | perplexity | mean KL | same top token |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {label} | {facts['changed']} | {facts['declined']} "
        f"| {score.perplexity:.2f} ({score.change:+.0%}) | {score.kl:.3f} | {score.top1:.1%} |"
        for label, (score, facts) in found.items()
    ]
    lines += [
        "", approximated.MINILM, "",
        "| rank, of what is as large | factored | left whole | mean cosine | least |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {label} | {figures['changed']:.0f} | {figures['declined']:.0f} | {figures['mean']:.4f} "
        f"| {figures['least']:.4f} |"
        for label, figures in minilm_scores(WORK, "lowrank", CASES, threads, known).items()
    ]
    return lines


def declined() -> list[str]:
    """What the compiler says where it leaves weights whole, one line for every reason and model."""
    lines = []
    for name, program in (("SmolLM2", approximated.smollm2().program), ("MiniLM", approximated.minilm())):
        for step in (FactorWeights(rank=0.9), FactorWeights(rank=0.5), FactorWeights(rank=0.5, bits=4)):
            result = step.run(program.clone(), PassContext())
            reasons: dict[str, int] = {}
            for note in result.declined:
                reasons[note.text] = reasons.get(note.text, 0) + 1
            told = [f"{count} left whole: {text}" for text, count in reasons.items()]
            facts = "; ".join([f"{result.changed} factored", *told])
            lines.append(f"- {name}, rank {step.rank}, {step.bits} bits: {facts}")
    return lines


def forms() -> Mapping[str, tuple[str, ...]]:
    """By name: what is enabled."""
    made: dict[str, tuple[str, ...]] = {"dense": ()}
    return made | {
        f"rank {rank}": (f"factor-weights{{rank={rank},force=true,{HEAD}}}",) for rank in RANKS[1:]
    }


DECODERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("native", "fp32", ()), ("ort", "fp32", ()), ("native", "int4", ("quantize-weights{bits=4,method=rtn}",))
)  # fmt: skip
"""Backend, name and further passes of SmolLM2's executables; how weights are rounded changes no time."""


def folder_of(model: str, backend: str, kind: str, form: str) -> Path:
    return WORK / "lowrank-executables" / f"{model}-{backend}-{kind}-{form.replace(' ', '-')}"


def build() -> None:
    """Every executable that is timed and is not there yet."""
    minilm_source, smollm2_source = (
        (minilm(), inputs_of(2, 11)),
        (hugging_face_folder(WORK / "smollm2"), None),
    )
    wanted: list[tuple[str, tuple[Any, Any], str, str, tuple[str, ...]]]
    wanted = [("minilm", minilm_source, backend, "fp32", ()) for backend in BACKENDS]
    wanted += [("smollm2", smollm2_source, *decoder) for decoder in DECODERS]
    for model, (source, inputs), backend, kind, further in wanted:
        for form, asked in forms().items():
            output = folder_of(model, backend, kind, form)
            if not output.exists():
                print(f"  building {output.name}", flush=True)
                miaotui.compile(
                    source, inputs, output=output, backend=backend, enable=(*asked, *further),
                    verify=False, keep_source=False, timing=0.0,
                ).close()  # fmt: skip


def encoder() -> Iterator[Row]:
    """MiniLM on one sentence of TOKENS tokens."""
    inputs = inputs_of(1, TOKENS)
    for backend in BACKENDS:
        with ExitStack() as stack:
            made = {
                form: stack.enter_context(miaotui.open(folder_of("minilm", backend, "fp32", form)))
                for form in forms()
            }
            for threads in shared.thread_counts():
                runs = {form: partial(exe.runner(threads=threads).run, inputs) for form, exe in made.items()}
                yield from raced(f"MiniLM, 1 x {TOKENS}", backend, threads, runs)


def decoder() -> Iterator[Row]:
    """SmolLM2 in float32 and in 4 bits: a prompt, and tokens behind a short one."""
    ids = [7 + index * 37 % 4000 for index in range(PROMPT)]
    for backend, kind, _ in DECODERS:
        for threads in shared.thread_counts():
            engines = {
                form: Ours(folder_of("smollm2", backend, kind, form), threads, 2 * PROMPT) for form in forms()
            }
            prefill: dict[str, Callable[[], Any]] = {f: partial(e.prefill, ids) for f, e in engines.items()}
            decode: dict[str, Callable[[], Any]] = {f: partial(written, e, ids) for f, e in engines.items()}
            name = f"SmolLM2 {kind}"
            yield from raced(f"{name}, prompt of {PROMPT}", backend, threads, prefill)
            yield from raced(f"{name}, {NEW} tokens behind {NEAR}", backend, threads, decode)
            del engines, prefill, decode


def main() -> None:
    options = arguments(__doc__, "build")
    if options.part in ("accuracy", "all"):
        lines = [
            *accuracy(options.windows, options.threads, options.known),
            "",
            "What is declined:",
            "",
            *declined(),
        ]
        store("lowrank-accuracy", "What low rank costs real weights", lines)
    if options.part != "accuracy":
        build()
    if options.part in ("timing", "all"):
        rows: Sequence[Row] = [*encoder(), *decoder()]
        lines = ["Factored by force; before and after interleaved in one process.", "", *timing_table(rows)]
        store("lowrank", "Low rank: time", lines, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
