"""Channels and heads removed: time before and after, interleaved, and what it costs on real weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import approximated
import interleave as shared
import miaotui
from approximated import WORK, Case, arguments, minilm_scores, smollm2_scores
from bench_decode import hugging_face_folder
from bench_encoder import TOKENS, bert, inputs_of, minilm
from engines import Ours
from miaotui.compiler.cost import program_cost
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.runtime.conditions import conditions
from miaotui.runtime.timing import SETTLE, interleave
from perplexity import Score

SHARES = (0.1, 0.2, 0.3, 0.5)
METHODS = ("surgeon", "moment", "magnitude")
FORMS = {"dense": None, "channels 30%": "channels:0.3", "heads 25%": "heads:0.25"}
BACKENDS = ("native", "ort")
PROMPT, NEAR, NEW = 128, 16, 16


def channels(share: float, method: str = "surgeon") -> Case:
    return Case(f"channels {share:.0%}, {method}", (f"prune-channels{{share={share},method={method}}}",))


def heads(share: float, method: str = "surgeon", groups: str = "auto") -> Case:
    label = f"heads {share:.0%}, {method}" if groups == "auto" else f"heads {share:.0%} ({groups}), {method}"
    return Case(label, (f"prune-heads{{share={share},method={method},groups={groups}}}",))


SMOLLM2 = (
    *(channels(share) for share in SHARES),
    channels(0.3, "magnitude"), channels(0.1, "magnitude"), channels(0.3, "moment"), channels(0.1, "moment"),
    *(heads(1 / 3, method, groups) for groups in ("whole", "each") for method in ("surgeon", "magnitude")),
    Case("channels 30%, then int8", ("prune-channels", "quantize-weights")),
)  # fmt: skip
"""Three KV heads of three query heads each: a third is the least that can go."""

MINILM = (
    *(channels(share, method) for method in METHODS for share in SHARES),
    *(heads(share, method) for method in METHODS for share in (0.1, 0.25, 0.5)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of one form; ``ratio`` of speed against the dense one under the same backend."""

    case: str
    backend: str
    threads: int
    form: str
    median: float
    ratio: float
    low: float
    high: float


def raced(case: str, backend: str, threads: int, runs: Mapping[str, Callable[[], Any]]) -> Iterator[Row]:
    """Rows of one race."""
    timings = interleave(runs, 60, seconds=5.0 * len(runs), settle=SETTLE if threads > 1 else 0.0)
    for form in runs:
        speed = timings.speedup(form, "dense")
        row = Row(
            case,
            backend,
            threads,
            form,
            timings.latency(form).median * 1e3,
            speed.ratio,
            speed.low,
            speed.high,
        )
        print(f"  {case}, {backend}, {threads} threads: {form} {row.median:.2f} ms {speed}")
        yield row


def encoder(name: str, build: Callable[[], Any]) -> Iterator[Row]:
    """One sentence of TOKENS tokens."""
    module, inputs = build(), inputs_of(1, TOKENS)
    for backend in BACKENDS:
        with ExitStack() as stack:
            made = {
                form: stack.enter_context(
                    shared.compiled(
                        module,
                        inputs_of(2, 11),
                        {},
                        backend=backend,
                        sparsity=asked,
                        timing=0.0,
                        keep_source=False,
                    )
                )
                for form, asked in FORMS.items()
            }
            for threads in shared.thread_counts():
                runs = {form: partial(exe.runner(threads=threads).run, inputs) for form, exe in made.items()}
                yield from raced(f"{name}, 1 x {TOKENS}", backend, threads, runs)


def decoder() -> Iterator[Row]:
    """SmolLM2: a prompt, and tokens behind a short one."""
    ids = [7 + index * 37 % 4000 for index in range(PROMPT)]
    source = hugging_face_folder(WORK / "smollm2")
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as folder:
            for index, asked in enumerate(FORMS.values()):
                options: dict[str, Any] = {"sparsity": asked, "verify": False, "keep_source": False}
                miaotui.compile(
                    source, output=f"{folder}/{index}", backend=backend, timing=0.0, **options
                ).close()
            for threads in shared.thread_counts():
                engines = {
                    form: Ours(Path(folder, str(index)), threads, 2 * PROMPT)
                    for index, form in enumerate(FORMS)
                }
                prefill = {form: partial(engine.prefill, ids) for form, engine in engines.items()}
                decode = {form: partial(written, engine, ids) for form, engine in engines.items()}
                yield from raced(f"SmolLM2, prompt of {PROMPT}", backend, threads, prefill)
                yield from raced(f"SmolLM2, {NEW} tokens behind {NEAR}", backend, threads, decode)
                del engines, prefill, decode


def written(engine: Ours, ids: Sequence[int]) -> None:
    """NEW tokens behind NEAR."""
    engine.prefill(ids[:NEAR])
    for _ in range(NEW - 1):
        engine.step()


def mlp_share(program: Program, sizes: Mapping[str, int]) -> tuple[float, float]:
    """Of all operations: those of the layers whose channels can go; what is left of all without 30 %."""
    whole = program_cost(program, sizes).flops
    half, _ = approximated.approximated(program, channels(0.5, "magnitude"), {})
    cut, _ = approximated.approximated(program, channels(0.3, "magnitude"), {})
    return 2 * (1 - program_cost(half, sizes).flops / whole), program_cost(cut, sizes).flops / whole


def shares() -> list[str]:
    """One line a model."""
    lines = []
    for name, program, names in (
        ("SmolLM2, prompt of 128", approximated.smollm2().program, {"batch": 1, "sequence": 128}),
        ("MiniLM, 1 x 128", approximated.minilm(), {"batch": 1, "sequence": 128}),
    ):
        share, left = mlp_share(program, names)
        lines.append(
            f"- {name}: {share:.0%} of the operations are the MLPs', {left:.0%} are left without 30 %"
        )
    return lines


def accuracy(windows: int, threads: int | None, known: bool) -> list[str]:
    """Tables of both models; what is known already is not measured again."""
    found = smollm2_scores(WORK, "structured", SMOLLM2, windows, threads, known)
    source = next((score for score, _ in found.values()), Score(0, 0.0, 0.0, 0.0, 0.0))
    lines = [
        f"SmolLM2-135M, {source.tokens:,} tokens of Python's documentation, source's perplexity "
        f"{source.source:.2f}; calibrated on 8,192 tokens of other topics:", "",
        "| removed | perplexity | mean KL | same top token | elements of matrices, millions |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for label, (score, facts) in found.items():
        lines.append(
            f"| {label} | {score.perplexity:.2f} ({score.change:+.0%}) | {score.kl:.3f} | {score.top1:.1%} "
            f"| {facts['weights'] / 1e6:.1f} |"
        )
    lines += [
        "", approximated.MINILM, "",
        "| removed | mean cosine | least | elements of matrices, millions |", "|---|---|---|---|",
    ]  # fmt: skip
    for label, figures in minilm_scores(WORK, "structured", MINILM, threads, known).items():
        lines.append(
            f"| {label} | {figures['mean']:.4f} | {figures['least']:.4f} | {figures['weights'] / 1e6:.1f} |"
        )
    return lines


def timing_table(rows: Sequence[Row]) -> list[str]:
    """Time falls by 1 - 1/ratio."""
    lines = ["| case | backend | threads | form | median ms | speed against dense [CI95] | time falls by |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [
        f"| {r.case} | {r.backend} | {r.threads} | {r.form} | {r.median:.2f} "
        f"| {r.ratio:.3f} [{r.low:.3f}, {r.high:.3f}] | {1 - 1 / r.ratio:.0%} |"
        for r in rows
    ]
    return lines


def main() -> None:
    options = arguments(__doc__)
    if options.part in ("accuracy", "all"):
        lines = [
            *accuracy(options.windows, options.threads, options.known),
            "",
            "The model's operations:",
            "",
            *shares(),
        ]
        store("structured-accuracy", "What removing channels and heads in one shot costs real weights", lines)
    if options.part in ("timing", "all"):
        rows = [*encoder("MiniLM", minilm), *encoder("BERT-base", bert), *decoder()]
        lines = [
            "Float32; 30 % of all MLP channels, or a quarter of all attention heads (of SmolLM2's three KV "
            "heads one), removed; before and after interleaved in one process.", "", *timing_table(rows),
        ]  # fmt: skip
        store("structured", "Channels and heads removed: time", lines, [asdict(row) for row in rows])


def store(name: str, title: str, lines: Sequence[str], rows: Sequence[Any] = ()) -> None:
    """Write ``results/name.md``, and ``.json`` if there are rows."""
    at = conditions(Target())
    text = [f"# {title}", "", f"{at.cpu}, {at.cores} cores, load {at.load:.1f} before.", "", *lines]
    shared.RESULTS.mkdir(exist_ok=True)
    (shared.RESULTS / f"{name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    if rows:
        data = {"conditions": asdict(at), "rows": list(rows)}
        (shared.RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
