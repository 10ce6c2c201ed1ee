"""Language models under native code, against llama.cpp, onnxruntime-genai, OpenVINO and our ort backend.

SmolLM2-135M from its Q4_1 GGUF file, and a Llama shape of 1.1 billion random weights, whose decoding is bound
by the memory; engines in turn in each round. Accuracy: top-1 agreement with the file's weights in float32.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import interleave as shared
import miaotui
import numpy as np
from engines import (
    Engine,
    Genai,
    LlamaCpp,
    OpenVino,
    Ours,
    genai_folder,
    openvino_folder,
    requantized,
)
from large_llama import write_large_llama
from limits import Limits, limits
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions

NEW = 127
"""Tokens decoded behind a prompt of 128."""
POSITIONS = 512
"""Positions of text over which agreement is counted."""


@dataclass(frozen=True, slots=True)
class Row:
    """One engine: tokens per second, medians of the rounds; ratios say how much faster native is, with the
    10th and 90th percentile over rounds. ``reach``: bytes of weights a second of decoding over the read rate;
    ``peak``: int8 operations of a prefill of 128 over the VNNI peak.
    """

    case: str
    threads: int
    name: str
    prefill: dict[int, float]
    decode: float
    prefill_ratio: dict[int, tuple[float, float, float]]
    decode_ratio: tuple[float, float, float]
    reach: float
    peak: float


@dataclass(frozen=True, slots=True)
class Case:
    """One model under several engines. ``weights``: bytes that native reads, ``operations``: of one token."""

    name: str
    ours: str
    engines: Mapping[str, Callable[[int], Engine]]
    prompts: tuple[int, ...]
    weights: int
    operations: float
    vocabulary: int
    new: int = NEW


Samples = dict[str, list[float]]


def measure(case: Case, threads: int, rounds: int) -> dict[str, Samples]:
    """Seconds a token, one sample a round; every round has other prompts, so that nothing kept helps."""
    engines = {name: open_engine(threads) for name, open_engine in case.engines.items()}
    found: dict[str, Samples] = {name: {} for name in engines}
    random = np.random.default_rng(threads)
    for number in range(-1, rounds):
        prompts = {n: random.integers(3, case.vocabulary - 100, n).tolist() for n in case.prompts}
        for name in list(engines)[:: -1 if number % 2 else 1]:
            engine, samples = engines[name], found[name]
            for length, prompt in prompts.items():
                seconds = timed(partial(engine.prefill, prompt)) / length
                keep(samples, f"prefill {length}", seconds, number)
            engine.prefill(prompts[128])
            keep(samples, "decode", statistics.median(timed(engine.step) for _ in range(case.new)), number)
    return found


def timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def keep(samples: Samples, kind: str, seconds: float, number: int) -> None:
    """Rounds before 0 are warm-up."""
    if number >= 0:
        samples.setdefault(kind, []).append(seconds)


def rows_of(case: Case, threads: int, found: Mapping[str, Samples], at: Limits) -> list[Row]:
    def ratio(name: str, kind: str) -> tuple[float, float, float]:
        times = np.array(found[name][kind]) / np.array(found[case.ours][kind])
        low, middle, high = np.quantile(times, [0.1, 0.5, 0.9])
        return float(middle), float(low), float(high)

    return [
        Row(
            case.name,
            threads,
            name,
            {n: 1 / statistics.median(samples[f"prefill {n}"]) for n in case.prompts},
            1 / statistics.median(samples["decode"]),
            {n: ratio(name, f"prefill {n}") for n in case.prompts},
            ratio(name, "decode"),
            case.weights / statistics.median(samples["decode"]) / at.read,
            case.operations / statistics.median(samples["prefill 128"]) / at.int8,
        )
        for name, samples in found.items()
    ]


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown; ratios are of native's speed over the row's."""
    lengths = list(rows[0].prefill)
    head = [*(f"pp{n}" for n in lengths), "tg", *(f"native × pp{n}" for n in lengths), "native × tg"]
    lines = [f"| threads | engine | {' | '.join(head)} | of the read rate | of the VNNI peak |"]
    lines.append("|" + "---|" * (len(head) + 4))
    for r in rows:
        cells = [*(f"{v:.0f}" for v in r.prefill.values()), f"{r.decode:.1f}"]
        cells += [f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in (*r.prefill_ratio.values(), r.decode_ratio)]
        own = "native" in r.name
        cells += [f"{r.reach:.0%}" if own else "", f"{r.peak:.0%}" if own else ""]
        lines.append(f"| {r.threads} | {r.name} | {' | '.join(cells)} |")
    return lines


def folder_of(work: Path, source: Path, name: str, **options: Any) -> Path:
    """``source`` compiled; kept in ``work``."""
    folder = work / f"{source.stem}-{name}"
    if not (folder / "manifest.json").is_file():
        print(f"compile {folder.name}", file=sys.stderr)
        settings: dict[str, Any] = {"timing": 0.0, "keep_source": False, **options}
        miaotui.compile(source, output=folder, **settings).close()
    return folder


def native_bytes(folder: Path) -> int:
    """What one decoded token reads: the packed weights."""
    return sum(p.stat().st_size for p in folder.resolve().rglob("model.weights"))


def smollm2(work: Path, context: int = 1024) -> Case:
    """SmolLM2 from the package's GGUF file; OpenVINO and onnxruntime-genai in their own best forms of it."""
    from bench_decode import hugging_face_folder
    from support.models import smollm2_gguf

    source = smollm2_gguf()
    native, ort = (folder_of(work, source, b, backend=b) for b in ("native", "ort"))
    engines: dict[str, Callable[[int], Engine]] = {
        "miaotui native, Q4_1": lambda t: Ours(native, t, context),
        "miaotui ort, Q4_1": lambda t: Ours(ort, t, context),
    }
    if (q4 := requantized(work, source, "Q4_0")) and (q8 := requantized(work, source, "Q8_0")):
        engines["llama.cpp Q4_1"] = lambda t: LlamaCpp(source, t, context)
        engines["llama.cpp Q4_0"] = lambda t: LlamaCpp(q4, t, context)
        for name, file in (("Q4_1", source), ("Q4_0", q4), ("Q8_0", q8)):
            if folder := openvino_folder(work, file):
                engines[f"OpenVINO {name}"] = lambda t, f=folder: OpenVino(f, t, context)  # type: ignore[misc]
    if folder := genai_folder(work, hugging_face_folder(work / "smollm2"), "int4"):
        engines["genai int4"] = lambda t: Genai(folder, t, context)
    operations = 2.0 * 30 * (576 * 960 + 576 * 576 + 3 * 576 * 1536)
    return Case(
        "SmolLM2-135M", "miaotui native, Q4_1", engines, (128, 512), native_bytes(native), operations, 49152
    )


def large(work: Path, kind: str, context: int = 512) -> Case:
    """22 layers, 2048 / 5632 wide, 32 heads, 4 KV heads, vocabulary 32,000; random blocks of ``kind``."""
    source = work / f"llama-1.1b-{kind.lower()}.gguf"
    if not source.is_file():
        write_large_llama(source, kind)
    native = folder_of(work, source, "native", backend="native", verify=False)
    engines: dict[str, Callable[[int], Engine]] = {
        f"miaotui native, {kind}": lambda t: Ours(native, t, context),
        f"llama.cpp {kind}": lambda t: LlamaCpp(source, t, context),
    }
    operations = 2.0 * 22 * (2048 * 2560 + 2048 * 2048 + 3 * 2048 * 5632)
    table = 32000 * 2048  # a token reads one row of it
    weights = int(native_bytes(native) * (operations / 2 + table) / (operations / 2 + 2 * table))
    return Case(
        f"Llama 1.1 B {kind}", f"miaotui native, {kind}", engines, (128,), weights, operations, 32000, 48
    )


def agreement(work: Path) -> list[str]:
    """Top-1 agreement and mean KL of logits with the file's weights in float32, over real text."""
    import torch
    from support.models import MODELS, smollm2_gguf
    from transformers import AutoTokenizer

    source = smollm2_gguf()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
    text = (Path(__file__).parents[1] / "docs" / "generation.md").read_text(encoding="utf-8")
    ids = tokenizer(text)["input_ids"][:POSITIONS]
    with torch.no_grad():
        right = MODELS["smollm2"].build().eval()(torch.tensor([ids])).logits[0].double().numpy()
    found = {}
    for backend in ("native", "ort"):
        executable = miaotui.open(folder_of(work, source, backend, backend=backend))
        found[f"miaotui {backend}, Q4_1"] = executable.logits(ids)
        executable.close()
    if (q4 := requantized(work, source, "Q4_0")) is not None:
        found["llama.cpp Q4_1"] = LlamaCpp(source, 2, 1024).logits(ids)
        found["llama.cpp Q4_0"] = LlamaCpp(q4, 2, 1024).logits(ids)
    lines = ["| engine | top-1 | mean KL, nats |", "|---|---|---|"]
    for name, logits in found.items():
        p, q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (right, logits.astype(np.float64)))
        divergence = (np.exp(p) * (p - q)).sum(-1).mean()
        top = (right.argmax(-1) == logits.argmax(-1)).mean()
        lines.append(f"| {name} | {top:.3f} | {divergence:.4f} |")
    return lines


def contexts(folder: Path, threads: int) -> list[str]:
    """Milliseconds of a token with so many before it."""
    sizes = (128, 2048, 8000)
    engine, random = Ours(folder, threads, 8192), np.random.default_rng(0)
    found = []
    for size in sizes:
        engine.prefill(random.integers(3, 40000, size).tolist())
        found.append(statistics.median(timed(engine.step) for _ in range(48)) * 1e3)
    cells = " | ".join(f"{ms:.2f} ({ms / found[0]:.2f}×)" for ms in found)
    return [f"| {threads} | {cells} |"]


def batches(folder: Path, threads: int) -> list[str]:
    """Tokens per second of all rows together, prompts of different lengths."""
    generator, random, found = miaotui.open(folder).generator(threads=threads), np.random.default_rng(0), []
    for rows in (1, 2, 4, 8, 16, 64):
        prompts = [random.integers(3, 40000, 64 + 4 * (r % 16)).tolist() for r in range(rows)]
        decoder = generator.begin(prompts, 64)
        found.append(rows / statistics.median(timed(decoder.step) for _ in range(32)))
    return [f"| {threads} | {' | '.join(f'{speed:.0f}' for speed in found)} |"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/miaotui-bench-decode"), help="kept between runs"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-rounds", type=int, default=3)
    parser.add_argument("--large", default="Q4_0,Q4_K,Q8_0", help="types of the large model, or nothing")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    at = conditions(Target())
    kinds = [k for k in options.large.split(",") if k]
    makers: list[Callable[[], Case]] = [lambda: smollm2(options.work)]
    makers += [lambda k=kind: large(options.work, k) for kind in kinds]  # type: ignore[misc]
    lines = [
        "# Language models under native code, batch 1", "",
        f"{at.cpu}, {at.cores} cores, load {at.load:.1f} before; {options.rounds} rounds "
        f"({options.large_rounds} of the large model), engines in turn in each. "
        "pp: tokens per second of a prompt; tg: of decoding behind a prompt of 128. Ratios: how much "
        "faster native is, median [p10, p90]. Of the read rate: packed weights read per second, over the "
        "rate at which a pool of that size is read in the same run; of the VNNI peak: int8 operations of "
        "pp128 over bare dot products.", "",
    ]  # fmt: skip
    found: list[Row] = []
    for make in makers:
        case = make()
        rounds = options.rounds if case.new == NEW else options.large_rounds
        lines += [f"## {case.name}", ""]
        rows: list[Row] = []
        for threads in shared.thread_counts():
            rates = limits(threads, case.weights)
            lines.append(f"{threads} threads: {rates}, {case.weights / 1e6:.0f} MB of weights.")
            print(case.name, lines[-1], file=sys.stderr)
            rows += rows_of(case, threads, measure(case, threads, rounds), rates)
            gc.collect()
        print("\n".join(table(rows)))
        lines += ["", *table(rows), ""]
        found += rows
        if case.name.startswith("SmolLM2"):
            from support.models import smollm2_gguf

            native = folder_of(options.work, smollm2_gguf(), "native", backend="native")
            lines += [f"Agreement over {POSITIONS} positions of text:", "", *agreement(options.work), ""]
            lines += ["Milliseconds of a token at a context of:", ""]
            lines += ["| threads | 128 | 2,048 | 8,000 |", "|---|---|---|---|"]
            lines += [line for t in shared.thread_counts() for line in contexts(native, t)]
            lines += ["", "Tokens per second of a batch:", "", "| threads | 1 | 2 | 4 | 8 | 16 | 64 |"]
            lines += ["|---|---|---|---|---|---|---|"]
            lines += [line for t in shared.thread_counts() for line in batches(native, t)] + [""]
    shared.RESULTS.mkdir(exist_ok=True)
    (shared.RESULTS / "native.md").write_text("\n".join(lines), encoding="utf-8")
    data = {"conditions": asdict(at), "rows": [asdict(r) for r in found]}
    (shared.RESULTS / "native.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
