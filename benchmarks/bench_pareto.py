"""SmolLM2: size against error of one format for all weights, and of mixes that a budget chose; a plot."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import interleave as shared
import numpy as np
from bench_decode import hugging_face_folder
from corpus import documentation, windows
from miaotui.compiler.options import CompileOptions, Target
from miaotui.driver.budget import swapped_by
from miaotui.driver.calibration import measured_moments
from miaotui.driver.context import context_of
from miaotui.driver.formats import Format, approximating
from miaotui.driver.groups import Group
from miaotui.driver.meter import Made, Meter
from miaotui.driver.metric import Metric
from miaotui.driver.probe import reached
from miaotui.driver.progress import Journal, Silent
from miaotui.driver.samples import samples_of
from miaotui.driver.search import Search
from miaotui.driver.sensitivity import Row, sensitivity
from miaotui.frontends.load import load
from miaotui.passes.pipeline import pipeline
from miaotui.runtime.conditions import conditions
from perplexity import Array, Score, compared

COUNT, QUICK = 12, 2
"""Windows of 512 tokens that every point is evaluated on."""
HALF = "fp16"
UNIFORM = ("int4 g128", "int4 g64", "int4 g32", "int8 g128", "int8 g64", "int8 g32", "int8 g16", HALF)
"""Formats of all linear weights; the output layer, which is the embedding table too, is in 8 bits, beside
float16 in float16, and in a second point of those of 4 bits in 4 bits like the rest."""
FINEST = (0.0000012, 0.0000015, 0.00001, 0.00005, 0.0001, 0.00015, 0.0002)
FINE = (0.00025, 0.0003, 0.0004, 0.00045, 0.0005, 0.0006, 0.0007, 0.001)
BUDGETS = (*FINEST, *FINE, 0.003, 0.006, 0.01, 0.015, 0.02, 0.03, 0.045, 0.07, 0.12)
"""Mean KL on the calibration text."""
PATIENCE = 3600.0
WIDE = 100.0
PANELS = ((0.0, 1000.0), (70.0, 111.0), (140.0, 170.0))
"""Megabytes that are plotted: all, and where those of 4 and of 8 bits are; panels over ``WIDE`` name few."""


@dataclass(frozen=True, slots=True)
class Point:
    """``megabytes``: of all weights, 10^6 bytes. ``formats``: how many groups are in which."""

    name: str
    kind: str
    megabytes: float
    kl: float
    perplexity: float
    change: float
    top1: float
    formats: dict[str, int]


class Progress(Silent):
    """Counts on stderr."""

    def count(self, done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            print(f"\rsensitivity {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


class Keeping(Meter):
    """Rounds each group to a format once: some 4 GB."""

    @cached_property
    def _kept(self) -> dict[tuple[Group, Format], Made | None]:
        return {}

    def made(self, group: Group, chosen: Format) -> Made | None:
        if (group, chosen) not in self._kept:
            self._kept[group, chosen] = super().made(group, chosen)
        return self._kept[group, chosen]


@dataclass(slots=True)
class Evaluation:
    """The text every point is compared on, and the source's logits after each token."""

    meter: Meter
    ids: Array
    source: Array

    @classmethod
    def of(cls, meter: Meter, ids: Array, work: Path) -> Evaluation:
        vocabulary = meter.metric.vocabulary
        assert vocabulary is not None
        source = np.memmap(work / "source.f32", np.float32, "w+", shape=(*ids.shape, vocabulary))
        for index, window in enumerate(ids):
            source[index] = logits(meter.run({"input_ids": window[None]}), vocabulary)
        return cls(meter, ids, source)

    def point(self, name: str, kind: str, chosen: Mapping[Group, Row]) -> Point:
        """The choice with all its weights swapped, on every window."""
        swapped = swapped_by(self.meter, chosen)
        vocabulary = self.source.shape[-1]
        parts = []
        for window, right in zip(self.ids, self.source, strict=True):
            made = logits(self.meter.run({"input_ids": window[None]}, swapped), vocabulary)
            parts.append(compared(made, np.asarray(right), window))
        score = Score.of(parts)
        formats: dict[str, int] = {}
        for row in chosen.values():
            formats[row.format.label] = formats.get(row.format.label, 0) + 1
        size = (sum(row.nbytes for row in chosen.values()) + others(self.meter)) / 1e6
        found = Point(name, kind, size, score.kl, score.perplexity, score.change, score.top1, formats)
        print(f"{name}: {size:.1f} MB, KL {score.kl:.3g}, ΔPPL {score.change:+.2%}", file=sys.stderr)
        return found


def logits(outputs: Mapping[str, Array], vocabulary: int) -> Array:
    """float32[tokens, vocabulary] of one row."""
    return next(np.asarray(a[0], np.float32) for a in outputs.values() if a.shape[-1] == vocabulary)


def others(meter: Meter) -> int:
    """Bytes of what no format changes: norms, tables of positions."""
    chosen = {name for group in meter.groups for name in group.weights}
    tensors = {name: value.const_value for name, value in meter.program.main.graph.initializers.items()}
    return sum(t.nbytes for name, t in tensors.items() if t is not None and name not in chosen)


def uniform(rows: Mapping[Group, Sequence[Row]], label: str, head: str) -> dict[Group, Row]:
    """Every group in the format of ``label``, those with a table to look up in that of ``head``."""
    chosen = {}
    for group, listed in rows.items():
        by_label = {row.format.label: row for row in listed}
        tied = any("table" in row.format.label for row in listed)
        chosen[group] = next(by_label[name] for name in finer(head if tied else label) if name in by_label)
    return chosen


def finer(label: str) -> list[str]:
    """The format, and those of smaller blocks, which stand for it where its block divides no row."""
    return [label, label.replace("g128", "g64"), label.replace("g128", "g32").replace("g64", "g32")]


def plot(points: Sequence[Point], path: Path) -> None:
    """KL over megabytes, all kinds: the whole, and where 4 and 8 bits crowd."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13.5, 4.8), dpi=150)
    for axes, (least, most) in zip(panels, PANELS, strict=True):
        _panel(axes, [p for p in points if least <= p.megabytes <= most], most - least < WIDE)
    panels[0].set(ylabel="mean KL to the float32 source, nats a token")
    panels[1].legend(loc="lower left")
    figure.suptitle("SmolLM2-135M: formats mixed by measured sensitivity")
    figure.tight_layout()
    figure.savefig(path)


def _panel(axes: Any, points: Sequence[Point], near: bool) -> None:
    styles = {"mixed": ("o-", "tab:blue", "mixed by budget"), "uniform": ("s", "tab:red", "one format"),
              "uniform 4-bit head": ("^", "tab:orange", "one format, output layer too")}  # fmt: skip
    for kind, (marker, color, label) in styles.items():
        chosen = sorted((p for p in points if p.kind == kind), key=lambda p: p.megabytes)
        axes.plot([p.megabytes for p in chosen], [p.kl for p in chosen], marker, color=color, label=label)
        for point in chosen if kind != "mixed" else ():
            if near or point.name == HALF:
                axes.annotate(
                    point.name, (point.megabytes, point.kl), (6, 4), fontsize=8, textcoords="offset points"
                )
    axes.set(xlabel="weights, MB", yscale="log")
    axes.margins(x=0.12)
    axes.grid(alpha=0.3, which="both")


def table(points: Sequence[Point]) -> list[str]:
    """Markdown."""
    lines = ["| point | kind | MB | mean KL | perplexity | ΔPPL | top-1 | groups by format |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---|")
    for p in sorted(points, key=lambda p: p.megabytes):
        formats = ", ".join(f"{count} {label}" for label, count in sorted(p.formats.items()))
        lines.append(
            f"| {p.name} | {p.kind} | {p.megabytes:.1f} | {p.kl:.3g} | {p.perplexity:.3f} "
            f"| {p.change:+.2%} | {p.top1:.3f} | {formats} |"
        )
    return lines


def better(points: Sequence[Point]) -> dict[str, tuple[float, float]]:
    """By uniform point: its KL, and that of mixes at the same bytes, between two neighbours in logarithms."""
    mixed = sorted((p for p in points if p.kind == "mixed"), key=lambda p: p.megabytes)
    sizes, errors = [p.megabytes for p in mixed], [np.log(p.kl) for p in mixed]
    return {
        f"{p.name} ({p.kind})": (p.kl, float(np.exp(np.interp(p.megabytes, sizes, errors))))
        for p in points
        if p.kind != "mixed" and sizes[0] <= p.megabytes <= sizes[-1]
    }


def unbeaten(points: Sequence[Point], compare: Mapping[str, tuple[float, float]]) -> str:
    """Which formats besides the cheapest are no worse than a mix of as many bytes, in a sentence."""
    cheapest = min((p for p in points if p.kind != "mixed"), key=lambda p: p.megabytes)
    names = [name for name, (own, mix) in compare.items() if mix >= own != cheapest.kl]
    return f"Nor are beaten: {', '.join(names)}." if names else "All others are beaten."


def as_stored(rows: Mapping[Group, Sequence[Row]]) -> str:
    """Which weights the GGUF file keeps in 8 bits already, so that blocks of 32 change less than float16."""
    errors = {group.name: {row.format.label: row.error for row in listed} for group, listed in rows.items()}
    names = [name for name, by_label in errors.items() if by_label["int8 g32"] < by_label[HALF]]
    told = f" In int8 g32 {', '.join(names)} loses less than in float16: the GGUF file keeps it so."
    return told if names else ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("/tmp/miaotui-bench-pareto"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--windows", type=int, default=COUNT)
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds for sensitivities, about")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} windows, nothing written")
    arguments = parser.parse_args(argv)
    work, count = arguments.work, QUICK if arguments.quick else arguments.windows
    work.mkdir(parents=True, exist_ok=True)
    folder = hugging_face_folder(work / "smollm2")
    calibration, text = documentation()
    (work / "calibration.txt").write_text(calibration, "utf-8")
    ids = windows(text, folder / "tokenizer.json", count)

    program = load(folder).program
    samples = samples_of(program, str(work / "calibration.txt"))
    print("second moments", file=sys.stderr)
    moments = measured_moments(program, samples.inputs, arguments.threads)
    options = CompileOptions(precision="int4", backend="ort")
    steps = pipeline(options)
    context = context_of(options)
    context.moments = moments
    prefix = steps[: steps.index(approximating(steps)[0])]
    prepared, context = reached(program, prefix, context)
    vocabulary = program.main.graph.outputs[0].shape[-1]  # type: ignore[index]
    metric = Metric(int(str(vocabulary)))
    with Keeping(prepared, steps, context, samples.inputs, metric, "int4", arguments.threads) as meter:
        found = sensitivity(meter, Journal(Progress()), arguments.patience)
        rows = {group: [row for row in found if row.group == group] for group in meter.groups}
        evaluation = Evaluation.of(meter, ids, work)
        points = []
        for label in UNIFORM:
            head = HALF if label == HALF else "int8 g32"
            points.append(evaluation.point(label, "uniform", uniform(rows, label, head)))
            if label.startswith("int4"):
                chosen = uniform(rows, label, f"{label} table")
                points.append(evaluation.point(label, "uniform 4-bit head", chosen))
        for budget in BUDGETS:
            search = Search(
                rows, lambda row: row.nbytes, lambda c: meter.error(swapped_by(meter, c)), None, budget
            )
            chosen_mix, _ = search.run()
            if chosen_mix is not None:
                points.append(evaluation.point(f"{budget:g}", "mixed", chosen_mix))
        estimated = sum(not row.measured for row in found)
    (work / "source.f32").unlink()
    compare = better(points)
    lines = [
        "SmolLM2-135M, source: the GGUF file dequantized to float32. KL and perplexity over "
        f"{ids.size:,} tokens of the Python language reference; calibrated and chosen on other parts of it "
        f"({sum(s['input_ids'].size for s in samples.inputs):,} tokens for second moments, 256 for "
        f"sensitivities, {estimated} of {len(found)} of them estimated). Weights alone are approximated, "
        "activations are float32. A mix is named by its budget: mean KL on the calibration text.",
        "",
        *table(points),
        "",
        "At equal bytes, mixes being interpolated. The cheapest format can't be beaten: whatever is mixed in "
        "is larger, so the mix of as many bytes is that format itself. "
        f"{unbeaten(points, compare)}{as_stored(rows)}",
        "",
        "| one format | its KL | mixed KL | ratio |",
        "|---|---:|---:|---:|",
        *(f"| {name} | {own:.3g} | {mix:.3g} | {mix / own:.2f} |" for name, (own, mix) in compare.items()),
        "",
    ]
    print("\n".join(lines))
    if not arguments.quick:
        shared.RESULTS.mkdir(exist_ok=True)
        data: dict[str, Any] = {"conditions": asdict(conditions(Target("cpu"))), "tokens": int(ids.size)}
        data |= {"points": [asdict(p) for p in points], "equal_bytes": compare}
        (shared.RESULTS / "pareto.json").write_text(json.dumps(data, indent=1, default=str) + "\n", "utf-8")
        (shared.RESULTS / "pareto.md").write_text("\n".join(lines) + "\n", "utf-8")
        plot(points, shared.RESULTS / "pareto.png")
    uniforms = sorted((p for p in points if p.kind != "mixed"), key=lambda p: p.megabytes)
    ends = uniforms[0].kl, uniforms[-1].kl
    return 0 if compare and all(mix < own or own in ends for own, mix in compare.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
