"""Time and peak memory of compiling a 1 GB model with external data; the compile is a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from interleave import RESULTS  # puts the tests' support on the path
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions
from support.big_model import write_big_model

LAYERS, WIDTH = 16, 4096
COMPILE = """
import json, resource, sys, miaotui
with miaotui.compile(sys.argv[1], output=sys.argv[2]) as executable:
    stages = executable.report["stages"]
print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "stages": stages}))
"""


def main() -> None:
    at = conditions(Target())
    weights = LAYERS * WIDTH * WIDTH * 4
    with tempfile.TemporaryDirectory() as folder:
        model = write_big_model(Path(folder), LAYERS, WIDTH)
        start = time.perf_counter()
        command = [sys.executable, "-c", COMPILE, str(model), str(Path(folder, "out.miaotui"))]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - start
    found = json.loads(printed)
    limit = 1.5 * weights + 600e6
    lines = [
        f"# Compile of {LAYERS} x MatMul {WIDTH} x {WIDTH} with external data",
        "",
        f"{at.cpu}, {at.cores} cores, load {at.load:.1f} before.",
        "",
        "| weights MB | peak resident MB | limit MB (1.5 x weights + 600) | seconds |",
        "|---|---|---|---|",
        f"| {weights / 1e6:.0f} | {found['peak'] / 1e6:.0f} | {limit / 1e6:.0f} | {seconds:.1f} |",
        "",
        "Stages, seconds: " + ", ".join(f"{s['name']} {s['seconds']:.1f}" for s in found["stages"]),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {**found, "weights": weights, "seconds": seconds, "conditions": asdict(at)}
    (RESULTS / "memory.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))
    if found["peak"] > limit:
        raise SystemExit("the peak is over the limit")


if __name__ == "__main__":
    main()
