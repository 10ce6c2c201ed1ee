"""Block-sparse networks compiled by TVM, and dense ones, beside ONNX Runtime dense; compiling an encoder.

python benchmarks/bench_tvm_sparse.py [--part PART]... [--threads N]... [--work FOLDER] [--build]

``--build`` only compiles, into ``--work``; what lies there already is not compiled again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import interleave as shared
import miaotui
import numpy as np
from miaotui.compiler.codegen.tvm.versions import check_pair
from miaotui.compiler.options import Target
from miaotui.runtime.compare import difference
from miaotui.runtime.conditions import conditions
from miaotui.runtime.timing import SETTLE, interleave

ORT = "onnxruntime dense"
SHARES = (0.8, 0.9)
COLD = 96 << 20
"""Bytes of weights that the copies of a small model take together: each comes from memory when it runs."""

TOKENS = 32
Model = tuple[Any, shared.Arrays]


@dataclass(frozen=True, slots=True)
class Case:
    """A model at one batch; ``settings``: what is compiled, by the name in the table.

    ``warm``: one copy is called again and again.
    """

    title: str
    model: Callable[[], Model]
    settings: Mapping[str, Mapping[str, Any]]
    warm: bool = False


def mlp(batch: int, sizes: Sequence[int] = (1024, 4096, 4096, 1024)) -> Model:
    """Layers with ReLU between them, random weights."""
    import torch

    torch.manual_seed(0)
    layers: list[Any] = []
    for columns, rows in pairwise(sizes):
        layers += [torch.nn.Linear(columns, rows), torch.nn.ReLU()]
    x = np.random.default_rng(0).standard_normal((batch, sizes[0])).astype(np.float32)
    return torch.nn.Sequential(*layers[:-1]).eval(), {"input": x}


def bert(batch: int) -> Model:
    """All twelve layers of BERT-base, random weights."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(attn_implementation="sdpa", vocab_size=1000)
    ids = np.random.default_rng(0).integers(0, 1000, (batch, TOKENS))
    inputs = {"input_ids": ids, "attention_mask": np.ones((batch, TOKENS), np.int64)}
    return BertModel(config, add_pooling_layer=False).eval(), inputs


def pruned(backend: str, share: float) -> dict[str, Any]:
    """Options of a compile that leaves ``share`` of the blocks zero."""
    prune = f"prune-weights{{pattern=block,sparsity={share},output=true}}"
    return {"backend": backend, "enable": (prune,)}


SPARSE = {
    ORT: {"backend": "ort"},
    **{f"{name} {share:.0%} blocks": pruned(name, share) for share in SHARES for name in ("tvm", "native")},
}
DENSE = {ORT: {"backend": "ort"}, "tvm dense": {"backend": "tvm"}}
SMALL = (784, 512, 512, 10)

CASES: Mapping[str, Sequence[Case]] = {
    "sparse": [
        *(Case(f"MLP 1024-4096-4096-1024, {n} rows", partial(mlp, n), SPARSE) for n in (1, 8)),
        *(Case(f"BERT-base, {n} x {TOKENS} tokens", partial(bert, n), SPARSE) for n in (1, 8)),
    ],
    "dense": [
        Case(f"MLP {'-'.join(map(str, sizes))}, {n} rows", partial(mlp, n, sizes), DENSE, warm)
        for sizes, warm in ((SMALL, True), (SMALL, False), ((1024, 4096, 4096, 1024), False))
        for n in (1, 2, 4, 8)
    ],
}


def built(case: Case, work: Path) -> dict[str, list[miaotui.Executable]]:
    """Every setting's copies, as many as no cache holds together; compiled if they are not in ``work``."""
    model: Model | None = None
    found = {}
    for name, options in case.settings.items():
        folder = work / f"{case.title} {name}".replace(" ", "-")
        if not (folder / "0").is_dir():
            model = model or case.model()
            with shared.compiled(*model, {}, timing=0, keep_source=False, **options) as executable:
                executable.save(folder / "0")
        found[name] = list(_copies(folder, 0 if case.warm else COLD))
    return found


def _copies(folder: Path, least: int) -> Iterator[miaotui.Executable]:
    size = sum(file.stat().st_size for file in (folder / "0").rglob("*") if file.is_file())
    for index in range(max(1, -(-least // size))):
        if not (folder / str(index)).is_dir():
            shutil.copytree(folder / "0", folder / str(index))
        yield miaotui.open(folder / str(index))


class Rotation:
    """Runners of one model that take turns, so that a small model's weights come from memory."""

    def __init__(self, runners: list[Any], inputs: shared.Arrays) -> None:
        self.runners, self.inputs, self.next = runners, inputs, 0
        for runner in runners:  # what is mapped is read from the disk once
            runner.run(inputs)

    def __call__(self) -> Any:
        self.next = (self.next + 1) % len(self.runners)
        return self.runners[self.next].run(self.inputs)


def timed(case: Case, work: Path, threads: int, seconds: float) -> list[dict[str, Any]]:
    """Rows of one case: medians, interleaved, and how many times as fast as ONNX Runtime dense."""
    inputs, title = case.model()[1], case.title + ", warm" * case.warm
    with ExitStack() as stack:
        runs = {}
        for name, copies in built(case, work).items():
            opened = [stack.enter_context(each) for each in copies]
            runs[name] = Rotation([copy.runner(threads=threads) for copy in opened], inputs)
        agree(runs)
        timings = interleave(runs, 400, seconds=seconds, settle=SETTLE if threads > 1 else 0.0)
    rows = []
    for name in runs:
        median, gain = timings.latency(name).median * 1e3, timings.speedup(name, ORT)
        rows.append(
            {"case": title, "threads": threads, "name": name, "median ms": median}
            | {"ratio": gain.ratio, "low": gain.low, "high": gain.high}
        )
        print(f"  {title:<34} {threads}  {name:<18} {median:9.3f} ms   {gain}", flush=True)
    return rows


def agree(runs: Mapping[str, Rotation]) -> None:
    """TVM and the one that computes the same give the same. Raises: SystemExit if they do not."""
    for name, run in runs.items():
        other = runs[ORT if name == "tvm dense" else name.replace("tvm", "native")]
        for (output, one), two in zip(run().items(), other().values(), strict=True):
            if not (found := difference(output, one, two, 1e-4).scaled) <= 1e-4:
                raise SystemExit(f"{name} is wrong: {found:.1e} > 1e-4")


def compiling(work: Path) -> list[dict[str, Any]]:
    """What it takes to compile MiniLM on the command line, from its folder, proof and timing with it."""
    from support.models import minilm_folder

    out = work / "minilm.miaotui"
    shutil.rmtree(out, ignore_errors=True)
    command = ["compile", str(minilm_folder()), "--backend", "tvm", "-o", str(out), "--quiet"]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "miaotui", *command],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MIAOTUI_CACHE": str(work / "cache")},
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("compiling MiniLM failed")
    seconds = time.perf_counter() - start
    stages = {
        stage["name"]: stage["seconds"] for stage in json.loads((out / "report.json").read_text())["stages"]
    }
    row = {
        "case": "MiniLM, dynamic batch and tokens",
        "threads": 1,
        "seconds": seconds,
        "stages": stages,
        "peak MB": usage.ru_maxrss / 1e3,
    }
    print(f"  {row['case']}: {seconds:.1f} s, {row['peak MB']:.0f} MB, {stages}", flush=True)
    return [row]


def store(part: str, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a part into the results, in place of those of its threads, and write the tables."""
    path = shared.RESULTS / "tvm-sparse.json"
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    again = {row["threads"] for row in rows}
    kept = [row for row in document.get(part, {}).get("rows", []) if row["threads"] not in again]
    rows = sorted([*kept, *rows], key=lambda row: int(row["threads"]))
    document[part] = {"conditions": asdict(conditions(Target())), "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(tables(document), encoding="utf-8")
    print(f"wrote {path}")


COMPILING = "compile"
TITLES = {
    "sparse": "Whole models, weights in blocks of 16 outputs by one input that are mostly zero",
    "dense": "Dense MLPs of few rows",
}


def tables(document: Mapping[str, Any]) -> str:
    """The results as markdown."""
    lines = ["# Programs that TVM compiled, beside ONNX Runtime", ""]
    lines += [
        f"apache-tvm {check_pair()}; onnxruntime's graphs as `--backend ort` makes them.",
        "Whole calls, float32, random weights. Models that caches would hold lie in copies that take turns:",
        "weights are cold, but where it says warm. Interleaved in one process.",
        "",
    ]
    for part, title in TITLES.items():
        if part not in document:
            continue
        at = document[part]["conditions"]
        lines += [f"## {title}", "", f"{at['cpu']}, {at['cores']} cores, load {at['load']:.1f}.", ""]
        lines += ["| model | threads | engine | median ms | times ONNX Runtime dense [CI95] |"]
        lines += ["|---|---|---|---|---|"]
        for row in document[part]["rows"]:
            span = f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
            lines.append(
                f"| {row['case']} | {row['threads']} | {row['name']} | {row['median ms']:.3f} | {span} |"
            )
        lines.append("")
    for row in document.get(COMPILING, {}).get("rows", ()):
        at = document[COMPILING]["conditions"]
        lines += ["## Compiling", "", f"{at['cpu']}, {at['cores']} cores, load {at['load']:.1f}.", ""]
        lines += ["`compile FOLDER --backend tvm`, from start to exit.", ""]
        lines += ["| model | s | of it build | verify | time | peak MB |", "|---|---|---|---|---|---|"]
        stages = " | ".join(f"{row['stages'].get(name, 0.0):.1f}" for name in ("build", "verify", "time"))
        lines.append(f"| {row['case']} | {row['seconds']:.1f} | {stages} | {row['peak MB']:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Build and measure what was chosen; what is not run stays in the tables as it was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=[*CASES, COMPILING], default=[])
    parser.add_argument("--only", default="", help="cases whose title contains this; nothing is stored")
    parser.add_argument("--threads", type=int, action="append", default=[])
    parser.add_argument("--work", type=Path, help="keeps compiled models; a temporary folder without it")
    parser.add_argument("--build", action="store_true", help="compile and copy, measure nothing")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each case")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        for part in options.part or [*CASES, COMPILING]:
            if part == COMPILING:
                if not options.build:
                    store(part, compiling(work))
                continue
            cases = [case for case in CASES[part] if options.only in case.title]
            for case in cases:
                for executable in (each for copies in built(case, work).values() for each in copies):
                    executable.close()
            if options.build:
                continue
            counts = options.threads or [1]
            rows = [row for n in counts for case in cases for row in timed(case, work, n, options.seconds)]
            if not options.only:
                store(part, rows)


if __name__ == "__main__":
    main()
