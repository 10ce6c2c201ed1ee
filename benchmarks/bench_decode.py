"""SmolLM2-135M, prefill and decode in every precision: miaotui against onnxruntime-genai, interleaved."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import interleave as shared
import miaotui
import numpy as np
from engines import Engine, Genai, Ours, genai_folder
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions

NEAR, FAR = 128, 2048
"""Tokens in the cache before decoding is timed."""
PREFILLS = (128, 512)
NEW = 127
"""Tokens decoded behind NEAR: contexts 129 to 255."""
FAR_NEW = 24
CONTEXT = FAR + NEW + 2
"""Tokens that every engine has room for."""
RIVALS = {"fp32": "genai fp32", **dict.fromkeys(("int8", "int4", "int4o4", "gguf"), "genai int4")}
"""What each precision of ours is measured against. ``int4o4``: the output layer in 4 bits, as theirs is;
``gguf``: the file's own blocks. Native code is measured in the same precisions."""
OURS = "fp32,int8,int4,int4o4,gguf,native-fp32,native-int8,native-int4,native-gguf"


@dataclass(frozen=True, slots=True)
class Row:
    """One engine: medians with the 10th and 90th percentile of its rounds.

    Prefill and decode in tokens per second, times of one token in milliseconds. Ratios: the rival's time
    over ours, round by round. ``reach``: bytes of weights read per second of decoding, as a share of the
    rate at which the memory can be read.
    """

    threads: int
    name: str
    prefill_128: float
    prefill_512: float
    decode: float
    decode_p10: float
    decode_p90: float
    near_ms: float
    far_ms: float
    reach: float
    rival: str | None = None
    prefill_128_ratio: float | None = None
    prefill_512_ratio: float | None = None
    decode_ratio: float | None = None
    decode_low: float | None = None
    decode_high: float | None = None


Samples = dict[str, list[float]]


def measure(engines: Mapping[str, Engine], rounds: int, seed: int = 0) -> dict[str, Samples]:
    """Seconds per token of every engine, one sample a round, the engines in turn.

    Each round has other tokens, so that nothing that was kept helps.
    """
    found: dict[str, Samples] = {name: {} for name in engines}
    random = np.random.default_rng(seed)
    for number in range(-1, rounds):
        prompts = {n: random.integers(3, 40000, n).tolist() for n in (*PREFILLS, FAR)}
        order = list(engines)[:: -1 if number % 2 else 1]
        for length in PREFILLS:
            for name in order:
                seconds = timed(lambda e=engines[name], p=prompts[length]: e.prefill(p))  # type: ignore[misc]
                keep(found[name], f"prefill {length}", seconds / length, number)
        for length, new in ((NEAR, NEW), (FAR, FAR_NEW))[: 1 if number < 0 else 2]:
            for name in order:
                engines[name].prefill(prompts[length])
                steps = [timed(engines[name].step) for _ in range(new)]
                keep(found[name], f"decode {length}", statistics.median(steps), number)
                keep(found[name], f"run {length}", sum(steps) / new, number)
    return found


def timed(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def keep(samples: Samples, kind: str, seconds: float, number: int) -> None:
    """Rounds before 0 are warm-up."""
    if number >= 0:
        samples.setdefault(kind, []).append(seconds)


def read_rate(threads: int) -> float:
    """Bytes per second at which ``threads`` threads read 512 MB again and again: torch's sum, best of 12."""
    import torch

    torch.set_num_threads(threads)
    pool = torch.ones(128 << 20, dtype=torch.float32)
    return float(pool.nbytes) / min(timed(pool.sum) for _ in range(12))


def rows_of(found: Mapping[str, Samples], threads: int, weights: Mapping[str, int], rate: float) -> list[Row]:
    """The table of one count of threads."""
    rows = []
    for name, samples in found.items():
        middle = {kind: statistics.median(seconds) for kind, seconds in samples.items()}
        rival = RIVALS.get(name.rpartition(" ")[2].removeprefix("native-")) if "miaotui" in name else None
        runs, ratios = samples[f"run {NEAR}"], dict[str, Any]()
        if rival is not None and rival in found:
            kinds = {"prefill_128": "prefill 128", "prefill_512": "prefill 512", "decode": f"run {NEAR}"}
            times = {key: np.array(found[rival][kind]) / samples[kind] for key, kind in kinds.items()}
            ratios = {f"{key}_ratio": float(np.median(values)) for key, values in times.items()}
            ratios["decode_low"], ratios["decode_high"] = _outer(times["decode"])
        slow, fast = (1 / seconds for seconds in reversed(_outer(runs)))
        rows.append(
            Row(
                threads=threads,
                name=name,
                prefill_128=1 / middle["prefill 128"],
                prefill_512=1 / middle["prefill 512"],
                decode=1 / middle[f"run {NEAR}"],
                decode_p10=slow,
                decode_p90=fast,
                near_ms=middle[f"decode {NEAR}"] * 1e3,
                far_ms=middle[f"decode {FAR}"] * 1e3,
                reach=weights[name] / middle[f"decode {NEAR}"] / rate,
                rival=rival if ratios else None,
                **ratios,
            )
        )
    return rows


def _outer(values: Any) -> tuple[float, float]:
    low, high = np.quantile(values, [0.1, 0.9])
    return float(low), float(high)


def table(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    lines = ["| threads | engine | pp128 | pp512 | tg [p10, p90] | ms at 128 | ms at 2,048 | × | against |"]
    lines[0] += " pp128 × | pp512 × | tg × [p10, p90] | of the memory's rate |"
    lines += ["|---|---|---|---|---|---|---|---|---|---|---|---|---|"]

    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    for r in rows:
        spread = "" if r.decode_low is None else f" [{r.decode_low:.2f}, {r.decode_high:.2f}]"
        share = f"{r.reach:.0%}" if r.reach else ""  # native weights lie in a file that is not counted
        lines.append(
            f"| {r.threads} | {r.name} | {r.prefill_128:.0f} | {r.prefill_512:.0f} "
            f"| {r.decode:.1f} [{r.decode_p10:.1f}, {r.decode_p90:.1f}] | {r.near_ms:.2f} | {r.far_ms:.2f} "
            f"| {r.far_ms / r.near_ms:.2f} | {r.rival or ''} | {ratio(r.prefill_128_ratio)} "
            f"| {ratio(r.prefill_512_ratio)} | {ratio(r.decode_ratio)}{spread} | {share} |"
        )
    return lines


def hugging_face_folder(folder: Path) -> Path:
    """SmolLM2 from the package's GGUF file as a Hugging Face folder of float32, tokenizer included."""
    if not (folder / "model.safetensors").is_file():
        from support.models import MODELS, smollm2_gguf

        module = MODELS["smollm2"].build()
        module.config.use_cache = True
        module.save_pretrained(folder)
        from transformers import AutoTokenizer

        path = smollm2_gguf()
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    return folder


def compiled(work: Path, source: Path, precision: str) -> Path:
    """Our folder for a precision; ``gguf`` is the file as it is."""
    folder = work / f"miaotui-{precision}"
    backend, precision = "native" if "native-" in precision else "ort", precision.removeprefix("native-")
    if not (folder / "manifest.json").is_file():
        from support.models import smollm2_gguf

        print(f"compile {precision}", file=sys.stderr)
        model, asked = (smollm2_gguf(), "fp32") if precision == "gguf" else (source, precision[:4])
        enable = ("quantize-weights{output=4}",) if precision == "int4o4" else ()
        options: dict[str, Any] = {"enable": enable, "timing": 0.0, "keep_source": False, "backend": backend}
        miaotui.compile(model, precision=asked, output=folder, **options).close()
    return folder


def bytes_read(folder: Path) -> int:
    """What one decoded token reads of the weights: the weight files."""
    return sum(p.stat().st_size for p in folder.resolve().rglob("*") if p.suffix in (".bin", ".data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/miaotui-bench-decode"), help="kept between runs"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ours", default=OURS)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    source = hugging_face_folder(options.work / "smollm2")
    ours = {f"miaotui {p}": compiled(options.work, source, p) for p in options.ours.split(",")}
    theirs = {f"genai {p}": genai_folder(options.work, source, p) for p in ("fp32", "int4")}
    rivals = {name: folder for name, folder in theirs.items() if folder is not None}
    weights = {name: bytes_read(folder) for name, folder in (ours | rivals).items()}
    rows: list[Row] = []
    at = conditions(Target())
    rates = []
    for threads in shared.thread_counts():
        rates.append(read_rate(threads))
        print(f"{threads} threads read {rates[-1] / 1e9:.1f} GB/s", file=sys.stderr)
        engines: dict[str, Engine] = {name: Ours(folder, threads, CONTEXT) for name, folder in ours.items()}
        engines |= {name: Genai(folder, threads, CONTEXT) for name, folder in rivals.items()}
        found = measure(engines, options.rounds)
        rows += rows_of(found, threads, weights, rates[-1])
        print("\n".join(table(rows)))
        del engines
        gc.collect()
    read = ", ".join(f"{rate / 1e9:.1f}" for rate in rates)
    lines = [
        "# SmolLM2-135M, batch 1: tokens per second of prefill and decode", "",
        f"{at.cpu}, {at.cores} cores, load {at.load:.1f} before; {options.rounds} rounds, engines in turn in "
        f"each; memory read at {read} GB/s (1, 2 threads).", "",
        f"tg: over {NEW} tokens behind a prompt of {NEAR}. ms: median time of a token with so many before it "
        "and the ratio of the two. Against folders of onnxruntime-genai's builder (int4: blocks of 32, "
        "symmetric, output layer included, 8-bit activations); ratios above 1: ours is faster.", "",
        *table(rows),
    ]  # fmt: skip
    shared.RESULTS.mkdir(exist_ok=True)
    (shared.RESULTS / "decode.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"conditions": asdict(at), "read_rates": rates, "rows": [asdict(r) for r in rows]}
    (shared.RESULTS / "decode.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
