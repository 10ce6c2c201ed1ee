"""Time and peak memory of compiling large models; each compile is a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from interleave import RESULTS  # puts the tests' support on the path
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions
from support.big_llama import TINY_LLAMA, write_llama
from support.big_model import write_big_model

LAYERS, WIDTH = 16, 4096
COMPILE = """
import json, sys, miaotui
from miaotui.runtime.conditions import peak_rss
with miaotui.compile(sys.argv[1], output=sys.argv[2], **json.loads(sys.argv[3])) as executable:
    stages = executable.report["stages"]
print(json.dumps({"peak": peak_rss(), "stages": stages}))
"""


@dataclass(frozen=True)
class Case:
    """A model that ``write`` puts into a folder, compiled with ``options``; ``limit``: bytes at the peak."""

    title: str
    write: Callable[[Path], Path]
    weights: int
    limit: float
    options: dict[str, Any] = field(default_factory=dict)


def mlp(folder: Path) -> Path:
    return write_big_model(folder, LAYERS, WIDTH)


def llama(folder: Path) -> Path:
    write_llama(folder, TINY_LLAMA)
    return folder


DENSE = LAYERS * WIDTH * WIDTH * 4
CASES = (
    Case(f"{LAYERS} x MatMul {WIDTH} x {WIDTH}, external data", mlp, DENSE, 1.5 * DENSE + 600e6),
    Case(
        "Llama shape of 1.1 B parameters, bfloat16 shards, to int4",
        llama,
        2 * 1_100_048_384,
        3e9,
        {"precision": "int4", "backend": "ort"},
    ),
)


def measured(case: Case) -> dict[str, Any]:
    """Peak bytes, seconds and stages of one compile."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        source.mkdir()
        model = case.write(source)
        start = time.perf_counter()
        output = Path(folder, "out.miaotui")
        command = [sys.executable, "-c", COMPILE, str(model), str(output), json.dumps(case.options)]
        nothing_known = {**os.environ, "MIAOTUI_CACHE": f"{folder}/cache"}
        printed = subprocess.run(
            command, check=True, capture_output=True, text=True, env=nothing_known
        ).stdout
        found = json.loads(printed.splitlines()[-1])
        written = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
        return {**found, "seconds": time.perf_counter() - start, "written": written}


def main() -> None:
    at = conditions(Target())
    found = {case.title: measured(case) for case in CASES}
    lines = [
        "# Peak memory of compiling large models",
        "",
        f"{at.cpu}, {at.cores} cores, load {at.load:.1f} before.",
        "",
        "| model | weights MB | folder MB | peak resident MB | limit MB | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        one = found[case.title]
        sizes = [case.weights, one["written"], one["peak"], case.limit]
        cells = " | ".join(f"{size / 1e6:.0f}" for size in sizes)
        lines.append(f"| {case.title} | {cells} | {one['seconds']:.1f} |")
    lines.append("")
    for case in CASES:
        stages = ", ".join(f"{s['name']} {s['seconds']:.1f}" for s in found[case.title]["stages"])
        lines.append(f"Stages of {case.title}, seconds: {stages}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"cases": found, "conditions": asdict(at)}
    (RESULTS / "memory.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
    over = [case.title for case in CASES if found[case.title]["peak"] > case.limit]
    if over:
        raise SystemExit(f"the peak is over the limit: {', '.join(over)}")


if __name__ == "__main__":
    main()
