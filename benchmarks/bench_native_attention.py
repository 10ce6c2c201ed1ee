"""Attention of the native kernels beside what the machine can do: bytes of the cache read, multiply-adds.

python benchmarks/bench_native_attention.py [--threads N]... [--runs N]
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from limits import Limits, limits
from miaotui.compiler.codegen.isa import isa_of
from miaotui.compiler.codegen.native.toolchain import find_toolchain
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions

RESULTS = Path(__file__).with_name("results")
POOL = 160 << 20
"""Bytes of caches that are gone through, if the model has as many layers: more than CPUs have caches."""

CONTEXTS, PROMPTS = (128, 2048, 8192, 32768), (128, 512)
ENUMERATOR = {"none": "CACHE_NONE", "fp32": "CACHE_F32", "fp16": "CACHE_F16", "int8": "CACHE_I8"}
WIDTH = {"none": (4, 0), "fp32": (4, 0), "fp16": (2, 0), "int8": (1, 4)}
"""Bytes of an element, and of a row besides."""


@dataclass(frozen=True, slots=True)
class Model:
    """The attention of a model; ``caches``: the dtypes it is timed with."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    size: int
    caches: tuple[str, ...] = ("fp32", "fp16", "int8")


MODELS = (
    Model("SmolLM2-135M", 30, 9, 3, 64),
    Model("Llama-1.1B", 22, 32, 4, 64),
    Model("MiniLM-L6", 6, 12, 12, 32, ("none",)),
)


@dataclass(frozen=True, slots=True)
class Row:
    """All layers of a model: ``tokens`` new ones behind ``context`` others.

    ``rate``: bytes or operations a second; ``share``: of what this machine does at best, measured before.
    """

    model: str
    cache: str
    threads: int
    tokens: int
    context: int
    milliseconds: float
    rate: float
    share: float


def library(specs: Sequence[tuple[Model, str]], folder: Path) -> Any:
    """The attentions compiled, each specialised as in a model."""
    lines = []
    for i, (m, cache) in enumerate(specs):
        rotary = "" if cache == "none" else f", .rotary = ROTARY_HALF, .pairs = {m.size // 2}"
        heads = f".heads = {m.heads}, .kv_heads = {m.kv_heads}, .size = {m.size}, .value_size = {m.size}"
        facts = f"{heads}, .epsilon = 1e-6f, .cache = {ENUMERATOR[cache]}{rotary}"
        lines.append(f"static const attention_spec spec_{i} = {{{facts}}};")
        lines.append(f"static void attention_{i}(worker *w, const attention_args *a)")
        lines.append(f"{{ attention(w, &spec_{i}, a); }}")
    count = len(specs)
    lines.append(
        f"static const attention_spec *specs[] = {{{', '.join(f'&spec_{i}' for i in range(count))}}};"
    )
    calls = " ".join(f"case {i}: attention_{i}(w, a); break;" for i in range(count))
    lines.append(
        "static void run_attention(int which, worker *w, const attention_args *a)\n"
        f"{{ switch (which) {{ {calls} }} }}"
    )
    source, output = folder / "attention.c", folder / "attention.so"
    text = Path(__file__).with_name("native_attention.c").read_text(encoding="utf-8")
    source.write_text(text.replace("\nSPECS\n", "\n" + "\n".join(lines) + "\n"), encoding="utf-8")
    toolchain = find_toolchain()
    toolchain.compile([source], output, toolchain.cpu(isa_of(Target("cpu"))))
    return ctypes.CDLL(str(output))


def best(
    code: Any, which: int, model: Model, cache: str, tokens: int, context: int, threads: int, runs: int
) -> float:
    """Seconds of the best run through all layers; of a long context, through some, as often as makes all."""
    each, more = WIDTH[cache]
    plane = model.kv_heads * (context + tokens) * (model.size * each + more)
    layers = min(model.layers, max(1, POOL // (2 * plane))) if context else model.layers
    caches = [np.full(layers * plane + 64, 0x21, np.uint8) for _ in range(2)] if cache != "none" else []
    at = [c.ctypes.data + -c.ctypes.data % 64 for c in caches] or [0, 0]
    times = (ctypes.c_double * runs)()
    sizes = [ctypes.c_int64(n) for n in (tokens, context, layers)]
    pointers = [ctypes.c_void_p(p) for p in at]
    done = code.time_attention(
        which, *sizes, *pointers, ctypes.c_int64(plane), ctypes.c_int64(plane), threads, runs, times
    )
    assert done
    return float(min(times)) * model.layers / layers


def measured(
    code: Any, which: int, model: Model, cache: str, threads: int, runs: int, limit: Limits
) -> list[Row]:
    """Decoding behind several contexts, prompts of several lengths."""
    rows = []
    for context in CONTEXTS if cache != "none" else ():
        seconds = best(code, which, model, cache, 1, context, threads, runs)
        each, more = WIDTH[cache]
        rate = 2 * model.layers * model.kv_heads * (context + 1) * (model.size * each + more) / seconds
        rows.append(Row(model.name, cache, threads, 1, context, seconds * 1e3, rate, rate / limit.read))
    for tokens in PROMPTS:
        seconds = best(code, which, model, cache, tokens, 0, threads, max(2, runs // 2))
        pairs = tokens * tokens if cache == "none" else tokens * (tokens + 1) / 2
        rate = 4 * model.layers * model.heads * model.size * pairs / seconds
        rows.append(Row(model.name, cache, threads, tokens, 0, seconds * 1e3, rate, rate / limit.fp32))
    for row in rows:
        print(line(row), flush=True)
    return rows


def line(row: Row) -> str:
    """A row of the table."""
    what = f"decode behind {row.context}" if row.context else f"{row.tokens} tokens"
    unit, limit = ("GB/s", "read") if row.context else ("GFLOP/s", "fp32 peak")
    return (
        f"| {row.model} | {row.cache} | {row.threads} | {what} | {row.milliseconds:.3f} "
        f"| {row.rate / 1e9:.1f} {unit} | {100 * row.share:.0f} % of {limit} |"
    )


def main() -> None:
    """Print the table and store it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    specs = [(model, cache) for model in MODELS for cache in model.caches]
    at, rows, found = conditions(Target()), [], []
    with tempfile.TemporaryDirectory() as folder:
        code = library(specs, Path(folder))
        for threads in options.threads or (1, 2):
            for which, (model, cache) in enumerate(specs):
                limit = limits(threads, POOL)
                found.append(f"{threads} threads, {model.name} {cache}: {limit}")
                rows += measured(code, which, model, cache, threads, options.runs, limit)
    head = ["| model | cache | threads | step | ms, all layers | rate | of what the machine does |"]
    lines = [
        "# Attention of the native kernels",
        "",
        f"{at.cpu}, {at.cores} cores, load {at.load:.1f} before.",
        "",
    ]
    lines += [
        "Best of several runs. Decoding: bytes of keys and values a second; prompts: multiply-adds with the",
        "keys that are seen, two operations each. Rounded caches are multiplied in 16-bit integers where the",
        "CPU has VNNI, so prompts may exceed the float peak. What the machine did just before:",
        "",
        *(f"- {text}" for text in found),
        "",
    ]
    lines += [*head, "|---" * 7 + "|", *map(line, rows)]
    (RESULTS / "native_attention.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"conditions": asdict(at), "limits": found, "rows": [asdict(row) for row in rows]}
    (RESULTS / "native_attention.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
