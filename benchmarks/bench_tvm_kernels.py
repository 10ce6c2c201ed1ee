"""Our own kernels in TIR beside ONNX Runtime's for the same: block-sparse, int4 and int8 weights, regions.

python benchmarks/bench_tvm_kernels.py [--threads N] [--only TEXT]... [--seconds S] [--no-write]

Interleaved in one process, inputs and outputs bound; weights cold: every call has other ones than the last.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass

import numpy as np
from interleave import PLAIN, RESULTS
from miaotui.compiler.codegen.tvm.versions import check_pair, require_tvm
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions
from miaotui.runtime.timing import SETTLE, interleave
from tvm_cases import Case, cases


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate; ``median``, ``p10`` and ``p90`` in microseconds, ``ratio`` against ONNX Runtime."""

    case: str
    threads: int
    name: str
    median: float
    p10: float
    p90: float
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        spread = f"{self.median:.1f} | {self.p10:.1f}–{self.p90:.1f}"
        ratio = f"{self.ratio:.2f} [{self.low:.2f}, {self.high:.2f}]"
        return f"| {self.case} | {self.threads} | {self.name} | {spread} | {ratio} |"


def timed(case: Case, threads: int, seconds: float) -> list[Row]:
    """Its candidates, timed and printed."""
    runs = case.candidates(threads)
    timings = interleave(runs, 200, seconds=seconds, settle=SETTLE if threads > 1 else 0.0)
    rows = []
    for name in runs:
        calls = np.array([s for block in timings.rounds[name] for s in block]) * 1e6
        p10, median, p90 = (float(q) for q in np.quantile(calls, [0.1, 0.5, 0.9]))
        speed = timings.speedup(name, PLAIN)
        rows.append(Row(case.name, threads, name, median, p10, p90, speed.ratio, speed.low, speed.high))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Time what was chosen and write ``results/tvm-kernels.md`` and ``.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], help="cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each case")
    parser.add_argument("--no-write", action="store_true", help="print the table only")
    chosen = parser.parse_args()
    os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count()))  # as the runner does
    require_tvm().get_global_func("runtime.config_threadpool")(1, chosen.threads)
    picked = [c for c in cases() if not chosen.only or any(text in c.name for text in chosen.only)]
    rows = [row for case in picked for row in timed(case, chosen.threads, chosen.seconds)]
    if chosen.no_write:
        return
    at = conditions(Target())
    head = [
        "# Kernels of our own in TVM's TIR",
        "",
        f"{at.cpu}, {at.cores} cores, load {at.load:.1f} before; apache-tvm {check_pair()}. Interleaved,",
        "inputs and outputs bound, weights cold (other ones at every call). onnxruntime: float32, dense.",
        "",
        "| case | threads | engine | median µs | p10–p90 µs | speed against onnxruntime [CI95] |",
        "|---|---|---|---|---|---|",
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tvm-kernels.md").write_text("\n".join([*head, *map(str, rows)]) + "\n", encoding="utf-8")
    data = {"conditions": asdict(at), "rows": [asdict(row) for row in rows]}
    (RESULTS / "tvm-kernels.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULTS}/tvm-kernels.md")


if __name__ == "__main__":
    main()
