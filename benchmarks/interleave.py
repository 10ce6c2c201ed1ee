"""What the CPU benchmarks share: the plain export, the peers, the products alone, and the table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import miaotui
import numpy as np
from miaotui.compiler.options import Target
from miaotui.runtime.compare import difference
from miaotui.runtime.conditions import Conditions, conditions, cores
from miaotui.runtime.timing import SETTLE, Timings, interleave

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the golden models are the tests' own

Arrays = dict[str, np.ndarray[Any, Any]]
Run = Callable[[], Any]

RESULTS = Path(__file__).parent / "results"
PLAIN, OURS, OPENVINO, PRODUCTS = "onnxruntime", "miaotui", "openvino", "products alone"


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate under one setting; times in milliseconds, ``ratio`` against plain onnxruntime."""

    case: str
    threads: int
    name: str
    median: float
    p10: float
    p90: float
    ratio: float
    low: float
    high: float


def plain_export(module: Any, inputs: Arrays, dynamic: Mapping[str, Mapping[int, Any]], path: Path) -> None:
    """``torch.onnx.export(dynamo=True, opset_version=23)`` with its default optimization, saved."""
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    exported = torch.onnx.export(
        module, (), kwargs=tensors, dynamo=True, opset_version=23, dynamic_shapes=dict(dynamic), verbose=False
    )
    assert exported is not None
    exported.save(path, external_data=True)


def plain_onnxruntime(path: Path, threads: int, inputs: Arrays) -> Run:
    """A default session on the plain export."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def openvino(path: Path, threads: int, inputs: Arrays) -> Run:
    """OpenVINO on the plain export: float32, latency hint, ``threads`` threads."""
    import openvino as ov

    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = ov.Core().compile_model(path, "CPU", hints).create_infer_request()
    return lambda: request.infer(inputs)


@contextmanager
def compiled(
    model: Any, inputs: Arrays, dims: Mapping[str, object], **options: Any
) -> Iterator[miaotui.Executable]:
    """The module or ONNX file compiled for the CPU; the benchmark itself compares with torch and times."""
    executable = miaotui.compile(model, inputs, dims=dims, **{"verify": False, "backend": "ort", **options})
    try:
        yield executable
    finally:
        executable.close()


def accuracy(label: str, run: Run, expected: Sequence[Any]) -> None:
    """Print the greatest scaled error against torch. Raises: SystemExit if it is above 1e-4."""
    outputs = run()
    outputs = outputs.values() if hasattr(outputs, "values") else outputs
    worst = max(
        difference(f"output {i}", np.asarray(a), b, 1e-4).scaled
        for i, (a, b) in enumerate(zip(outputs, expected, strict=True))
    )
    print(f"  {label:<14} scaled error against torch {worst:.1e}")
    if not worst <= 1e-4:
        raise SystemExit(f"{label} is wrong: {worst:.1e} > 1e-4")


def race(case: str, threads: int, runs: Mapping[str, Run], seconds: float = 12.0) -> list[Row]:
    """Time ``runs`` interleaved; rows in order, ratios against plain onnxruntime."""
    timings = interleave(runs, 60, seconds=seconds, settle=SETTLE if threads > 1 else 0.0)
    return [_row(case, threads, name, timings) for name in runs]


def _row(case: str, threads: int, name: str, timings: Timings) -> Row:
    calls = np.array([s for block in timings.rounds[name] for s in block]) * 1e3
    p10, median, p90 = (float(q) for q in np.quantile(calls, [0.1, 0.5, 0.9]))
    speed = timings.speedup(name, PLAIN)
    row = Row(case, threads, name, median, p10, p90, speed.ratio, speed.low, speed.high)
    print(f"  {threads} threads  {name:<14} {median:9.2f} ms   {speed}")
    return row


def thread_counts() -> tuple[int, ...]:
    """1, and 2 where there are two cores."""
    return (1, 2) if cores() > 1 else (1,)


def write(name: str, title: str, rows: Sequence[Row], notes: str) -> None:
    """Write the table as ``results/<name>.md`` and ``.json``, with the conditions."""
    at = conditions(Target())
    RESULTS.mkdir(exist_ok=True)
    lines = [f"# {title}", "", _conditions(at), "", notes, ""]
    lines += ["| case | threads | engine | median ms | p10–p90 ms | speed against onnxruntime [CI95] |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [
        f"| {r.case} | {r.threads} | {r.name} | {r.median:.2f} | {r.p10:.2f}–{r.p90:.2f} "
        f"| {r.ratio:.3f} [{r.low:.3f}, {r.high:.3f}] |"
        for r in rows
    ]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"title": title, "conditions": asdict(at), "rows": [asdict(r) for r in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULTS / name}.md")


def _conditions(at: Conditions) -> str:
    shown = ("onnxruntime", "openvino", "torch", "transformers")
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in shown)
    return f"{at.cpu}, {at.cores} cores, load {at.load:.1f} before; {versions}. float32, interleaved."
