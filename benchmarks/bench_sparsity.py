"""Block-sparse networks: native sparse against native dense and onnxruntime; what pruning costs real weights.

python benchmarks/bench_sparsity.py [--part speed] [--part accuracy] [--tokens 20480]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import interleave as shared
import miaotui
import numpy as np
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions
from miaotui.runtime.timing import interleave
from pruning_accuracy import Cost, minilm, prunings, smollm2

DENSE, ORT = "native dense", "onnxruntime dense"
SHARES = (0.8, 0.9)
COLD = 96 << 20
"""Bytes that the copies of a small model take together: each is out of the caches when it is called again."""


def mlp() -> tuple[Any, shared.Arrays]:
    """Three layers, 1024-4096-4096-1024, one row."""
    import torch

    torch.manual_seed(0)
    sizes = (1024, 4096, 4096, 1024)
    layers: list[Any] = []
    for columns, rows in pairwise(sizes):
        layers += [torch.nn.Linear(columns, rows), torch.nn.ReLU()]
    x = np.random.default_rng(0).standard_normal((1, sizes[0])).astype(np.float32)
    return torch.nn.Sequential(*layers[:-1]).eval(), {"input": x}


def bert(tokens: int) -> tuple[Any, shared.Arrays]:
    """Four layers of BERT-base's shape, one sequence."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(attn_implementation="sdpa", num_hidden_layers=4, vocab_size=1000)
    ids = np.random.default_rng(0).integers(0, 1000, (1, tokens))
    inputs = {"input_ids": ids, "attention_mask": np.ones((1, tokens), np.int64)}
    return BertModel(config, add_pooling_layer=False).eval(), inputs


CASES: Mapping[str, Callable[[], tuple[Any, shared.Arrays]]] = {
    "MLP 1024-4096-4096-1024, 1 row": mlp,
    **{f"4 BERT-base layers, 1 x {n}": partial(bert, n) for n in (8, 32, 128)},
}


def speed(case: str, threads: int) -> list[dict[str, Any]]:
    """Rows of one case: whole-model medians, interleaved, and how many times as fast as native dense."""
    module, inputs = CASES[case]()
    with ExitStack() as stack:
        made: dict[str, Any] = {}
        settings: dict[str, dict[str, Any]] = {DENSE: {"backend": "native"}, ORT: {"backend": "ort"}}
        for share in SHARES:
            prune = f"prune-weights{{pattern=block,sparsity={share},output=true}}"
            settings[f"native {share:.0%} blocks"] = {"backend": "native", "enable": (prune,)}
        for name, options in settings.items():
            made[name] = stack.enter_context(
                shared.compiled(module, inputs, {}, keep_source=False, **options)
            )
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = {}
        for index, (name, executable) in enumerate(made.items()):
            copies = [stack.enter_context(each) for each in _copies(executable, work / str(index))]
            runs[name] = Rotation([copy.runner(threads=threads) for copy in copies], inputs)
        timings = interleave(runs, 40, seconds=10.0)
        rows = []
        for name in runs:
            calls = np.array([s for block in timings.rounds[name] for s in block]) * 1e3
            gain = timings.speedup(name, DENSE)
            rows.append(
                {
                    "case": case,
                    "threads": threads,
                    "name": name,
                    "median ms": float(np.median(calls)),
                    "times native dense": gain.ratio,
                    "low": gain.low,
                    "high": gain.high,
                }
            )
            print(f"  {case}  {name:<20} {rows[-1]['median ms']:9.3f} ms   {gain}", flush=True)
        return rows


def _copies(executable: miaotui.Executable, folder: Path) -> Iterator[miaotui.Executable]:
    """As many copies of it, each with weights of its own, as are not in the caches together."""
    executable.save(folder / "0")
    size = sum(file.stat().st_size for file in (folder / "0").rglob("*") if file.is_file())
    for index in range(max(1, -(-COLD // size))):
        if index:
            shutil.copytree(folder / "0", folder / str(index))
        yield miaotui.open(folder / str(index))


class Rotation:
    """Runners of one model that take turns, so that a small model's weights come from memory."""

    def __init__(self, runners: list[Any], inputs: shared.Arrays) -> None:
        self.runners, self.inputs, self.next = runners, inputs, 0

    def __call__(self) -> Any:
        self.next = (self.next + 1) % len(self.runners)
        return self.runners[self.next].run(self.inputs)


def accuracy(tokens: int) -> list[Cost]:
    """What one-shot pruning costs MiniLM and SmolLM2."""
    found = []
    for costs in (minilm(), smollm2(tokens, 256)):
        for cost in costs:
            print(cost, flush=True)
            found.append(cost)
    return found


def main() -> None:
    """Measure and write ``results/sparsity.json`` and ``.md``; a part that is not run stays as it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=("speed", "accuracy"), default=[])
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    parts = options.part or ["speed", "accuracy"]
    if "speed" in parts:
        store("speed", [row for case in CASES for row in speed(case, options.threads)])
    if "accuracy" in parts:
        store("accuracy", [{**asdict(c), "tokens": options.tokens} for c in accuracy(options.tokens)])


def store(part: str, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a part into the results, and write the tables."""
    path = shared.RESULTS / "sparsity.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    document[part] = {"conditions": asdict(conditions(Target())), "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(tables(document), encoding="utf-8")
    print(f"wrote {path}")


def tables(document: dict[str, Any]) -> str:
    """The results as markdown."""
    lines = ["# Sparsity: what zeros gain and what they cost", ""]
    if "speed" in document:
        lines += [
            "## Whole models, weights in 1x16 blocks",
            "",
            _conditions(document["speed"]),
            "Random weights; batch 1; models that caches would hold in copies that take turns. Interleaved.",
            "",
            "| model | threads | engine | median ms | times native dense [CI95] |",
            "|---|---|---|---|---|",
        ]
        for row in document["speed"]["rows"]:
            span = f"{row['times native dense']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            lines.append(
                f"| {row['case']} | {row['threads']} | {row['name']} | {row['median ms']:.2f} | {span} |"
            )
        lines.append("")
    if "accuracy" in document:
        lines += ["## One-shot pruning of real weights", "", _conditions(document["accuracy"])]
        lines += [ACCURACY, ""]
        for model in dict.fromkeys(row["model"] for row in document["accuracy"]["rows"]):
            lines += _accuracy_table([r for r in document["accuracy"]["rows"] if r["model"] == model])
    return "\n".join(lines)


ACCURACY = (
    "All linear layers but the output layer, no training afterwards. Calibrated on one half of Python's "
    "language reference (4,096 tokens; MiniLM 128 sentences), judged on the other. KL in nats a token "
    "against the dense model; cosine of mean embeddings with the dense model's."
)


def _conditions(part: dict[str, Any]) -> str:
    at = part["conditions"]
    tokens = {row["tokens"] for row in part["rows"] if row.get("model", "").startswith("SmolLM2")}
    judged = f"; SmolLM2 judged on {tokens.pop():,} tokens" if tokens else ""
    rough = " Others were computing meanwhile: times are rough." if at["load"] > at["cores"] else ""
    return f"{at['cpu']}, {at['cores']} cores, load {at['load']:.1f}{judged}.{rough}"


def _accuracy_table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0]["figures"])
    lines = [f"| {rows[0]['model']} | zeros | method | " + " | ".join(names) + " |", "|---|---|---|---|---|"]
    for row in rows:
        figures = " | ".join(f"{row['figures'][name]:.4g}" for name in names)
        lines.append(f"| {row['pattern']} | {row['sparsity']:.0%} | {row['method']} | {figures} |")
    missing = 1 + len(list(prunings())) - len(rows)
    return [*lines, "", *([f"{missing} of the ways to prune are not measured yet.", ""] if missing else [])]


if __name__ == "__main__":
    main()
