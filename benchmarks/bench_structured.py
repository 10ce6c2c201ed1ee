"""Channels and heads removed: time before and after, interleaved, and what it costs on real weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import approximated
import interleave as shared
import miaotui
from approximated import WORK, Case, arguments, minilm_scores, smollm2_scores
from bench_encoder import TOKENS, inputs_of
from bench_sparsity import mlp
from engines import Ours
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions
from miaotui.runtime.timing import SETTLE, interleave
from perplexity import Score
from structured_forms import FORMS, LEGS, PROMPT, build, folder_of, forms_of, shares

SHARES = (0.1, 0.2, 0.3, 0.5)
METHODS = ("surgeon", "moment", "magnitude")
NEAR, NEW, LONG = 16, 16, 48
"""Tokens: of a short prompt, and written behind it."""


def channels(share: float, method: str = "surgeon") -> Case:
    return Case(f"channels {share:.0%}, {method}", (f"prune-channels{{share={share},method={method}}}",))


def heads(share: float, method: str = "surgeon", groups: str = "auto") -> Case:
    label = f"heads {share:.0%}, {method}" if groups == "auto" else f"heads {share:.0%} ({groups}), {method}"
    return Case(label, (f"prune-heads{{share={share},method={method},groups={groups}}}",))


def narrow(share: float, *, values: bool = False) -> Case:
    """``values``: of these alone, since a rotary embedding turns the keys."""
    label = f"{'values' if values else 'head channels'} {share:.0%}"
    return Case(label, (f"narrow-heads{{share={share},values_alone={values}}}",))


SMOLLM2 = (
    *(channels(share) for share in SHARES),
    channels(0.3, "magnitude"), channels(0.1, "magnitude"), channels(0.3, "moment"), channels(0.1, "moment"),
    *(heads(1 / 3, method, groups) for groups in ("whole", "each") for method in ("surgeon", "magnitude")),
    Case("channels 30%, then int8", ("prune-channels", "quantize-weights")),
    Case("heads 33% and channels 30%, surgeon", ("prune-heads{share=0.25}", "prune-channels")),
    *(narrow(share, values=True) for share in (0.25, 0.5)),
    Case("values 25% and channels 30%", ("narrow-heads{share=0.25,values_alone=true}", "prune-channels")),
)  # fmt: skip
"""Three KV heads of three query heads each: a third is the least that can go."""

MINILM = (
    *(channels(share, method) for method in METHODS for share in SHARES),
    *(heads(share, method) for method in METHODS for share in (0.1, 0.25, 0.5)),
    Case("heads 25% and channels 30%, surgeon", ("prune-heads", "prune-channels")),
    *(narrow(share) for share in (0.25, 0.5)),
    Case("head channels 25% and channels 30%", ("narrow-heads{share=0.25}", "prune-channels")),
)


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of one form; ``ratio`` of speed against the dense one under the same backend.

    ``left``: the share of the dense form's operations that it has, where that is known.
    """

    case: str
    backend: str
    threads: int
    form: str
    median: float
    ratio: float
    low: float
    high: float
    left: float | None = None


def raced(
    case: str, backend: str, threads: int, runs: Mapping[str, Callable[[], Any]], seconds: float = 5.0
) -> Iterator[Row]:
    """Rows of one race, which takes up to ``seconds`` for each form."""
    limit, settle = seconds * len(runs), SETTLE if threads > 1 else 0.0
    timings = interleave(runs, 60, seconds=limit, settle=settle)
    for form in runs:
        speed, median = timings.speedup(form, "dense"), timings.latency(form).median * 1e3
        print(f"  {case}, {backend}, {threads} threads: {form} {median:.2f} ms {speed}", flush=True)
        yield Row(case, backend, threads, form, median, speed.ratio, speed.low, speed.high)


def encoder(name: str, leg: str) -> Iterator[Row]:
    """One sentence of TOKENS tokens; of the MLP one row."""
    model, _, backend = leg.partition("-")
    inputs, left = mlp()[1] if model == "mlp" else inputs_of(1, TOKENS), shares(leg)["encode"]
    with ExitStack() as stack:
        made = {form: stack.enter_context(miaotui.open(folder_of(leg, form))) for form in forms_of(model)}
        for threads in shared.thread_counts():
            runs = {form: partial(exe.runner(threads=threads).run, inputs) for form, exe in made.items()}
            for row in raced(name, backend, threads, runs, 7.0):
                yield replace(row, left=left[row.form])


def decoder(leg: str) -> Iterator[Row]:
    """SmolLM2: a prompt, and tokens behind a short one."""
    ids, left, backend = (
        [7 + index * 37 % 4000 for index in range(PROMPT)],
        shares(leg),
        leg.partition("-")[2],
    )
    for threads in shared.thread_counts():
        engines = {form: Ours(folder_of(leg, form), threads, 2 * PROMPT) for form in FORMS}
        prefill = {form: partial(engine.prefill, ids) for form, engine in engines.items()}
        decode = {form: partial(written, engine, ids, LONG) for form, engine in engines.items()}
        for case, kind, runs, seconds in (
            (f"SmolLM2, prompt of {PROMPT}", "prompt", prefill, 6.0),
            (f"SmolLM2, {LONG} tokens behind {NEAR}", "decode", decode, 13.0),
        ):
            for row in raced(case, backend, threads, runs, seconds):
                yield replace(row, left=left[kind][row.form])
        del engines, prefill, decode, runs


def written(engine: Ours, ids: Sequence[int], new: int = NEW) -> None:
    """``new`` tokens behind NEAR."""
    engine.prefill(ids[:NEAR])
    for _ in range(new - 1):
        engine.step()


NAMES = {
    "mlp": "MLP 1024-4096-4096-1024, 1 row",
    "minilm": f"MiniLM, 1 x {TOKENS}",
    "bert": f"BERT-base, 1 x {TOKENS}",
    "smollm2": "SmolLM2",
}


def timed(leg: str) -> Iterator[Row]:
    """Rows of a model under a backend."""
    model = leg.partition("-")[0]
    yield from decoder(leg) if model == "smollm2" else encoder(NAMES[model], leg)


def with_stored(rows: Sequence[Row]) -> list[Row]:
    """``rows``, and in their place those stored of other races."""
    file = shared.RESULTS / "structured.json"
    stored = [Row(**row) for row in json.loads(file.read_text("utf-8"))["rows"]] if file.is_file() else []
    anew = {(row.case, row.backend) for row in rows}
    known = [row for row in stored if (row.case, row.backend) not in anew and row.form in FORMS]
    names = tuple(NAMES.values())
    return sorted(
        [*known, *rows],
        key=lambda r: (next(i for i, n in enumerate(names) if r.case.startswith(n)), r.backend, r.threads),
    )


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
    left = [f" {r.left:.0%} |" if r.left is not None else "" for r in rows]
    if any(left):
        lines = [lines[0] + " operations left |", lines[1] + "---|"]
    return lines + [
        f"| {r.case} | {r.backend} | {r.threads} | {r.form} | {r.median:.2f} "
        f"| {r.ratio:.3f} [{r.low:.3f}, {r.high:.3f}] | {1 - 1 / r.ratio:.0%} |{share}"
        for r, share in zip(rows, left, strict=True)
    ]


def main() -> None:
    options = arguments(__doc__, "build", legs=LEGS)
    if options.part in ("accuracy", "all"):
        lines = accuracy(options.windows, options.threads, options.known)
        store("structured-accuracy", "What removing channels and heads in one shot costs real weights", lines)
    if options.part != "accuracy":
        build(options.only)
    if options.part in ("timing", "all"):
        rows = with_stored([row for leg in options.only for row in timed(leg)])
        lines = [
            "Float32, before and after interleaved in one process. Removed are 30 % of the hidden channels "
            "of MLPs alone; of all channels (`--sparsity channels:0.3`), those of attention heads too, in "
            "multiples of 8, of SmolLM2, whose keys a rotary embedding turns, the values' under native code; "
            "or these and a quarter of the heads, of SmolLM2's three KV heads one. What is left of the "
            "operations is what time can fall to.", "",
            *timing_table(rows),
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
