"""Tables of a GPU check: engines of a case timed in turns, rows written as they come, bounds on time."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import conditions
from miaotui.runtime.counters import Counters
from miaotui.runtime.metering import metered

MEMORY, COMPUTE = 4.3e12, 790e12
"""Measured on an H200: bytes a second of a copy, operations a second of a bfloat16 product."""

OURS = "miaotui"


@dataclass(frozen=True, slots=True)
class Setting:
    """How much is measured. ``steps``: decoded tokens of a sample; ``stretch``: seconds metered."""

    device: str = "cuda"
    batches: tuple[int, ...] = (1, 8, 64)
    prompts: tuple[int, ...] = (512, 4096)
    images: tuple[int, ...] = (1, 32)
    rounds: int = 7
    steps: int = 24
    stretch: float = 1.0
    tiny: bool = False

    @property
    def precision(self) -> str:
        """Of language models."""
        return "fp32" if self.tiny else "bf16"


DRY = Setting("cpu", (1, 2), (8,), (1,), rounds=2, steps=2, stretch=0.02, tiny=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One engine at one case: medians over rounds. ``share``: of the limit named.

    ``joules``: of a token or image. ``ratio``: the engine's time over miaotui's. ``note``: what is missing,
    and why.
    """

    table: str
    case: str
    engine: str
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    rate: float | None = None
    share: float | None = None
    limit: str = ""
    ratio: float | None = None
    joules: float | None = None
    memory_mb: float | None = None
    clocks: str = ""
    note: str = ""


class OutOfTimeError(BaseException):
    """A section's time is over; no ``except Exception`` on the way may take it for a failure."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTimeError`` in the body once ``seconds`` are over."""

    def late(*_: object) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(slots=True)
class Report:
    """All rows so far, written anew after each."""

    path: Path | None
    setting: Setting
    counters: Counters
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Keep, print and write."""
        self.rows.append(row)
        print(line(row), flush=True)
        if self.path is not None:
            at = asdict(conditions(Target.parse(self.setting.device)))
            data: dict[str, Any] = {
                "conditions": at,
                "limits": {"memory": MEMORY, "compute": COMPUTE},
                "setting": asdict(self.setting),
            }
            data["rows"] = [asdict(r) for r in self.rows]
            self.path.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
            self.path.with_suffix(".md").write_text(document(self.rows, at), encoding="utf-8")


def document(rows: list[Row], at: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in at["versions"].items())
    lines = ["# CUDA check", "", f"{at['gpu'] or 'no GPU: a dry run, no measurement'}; {versions}."]
    lines += [
        "Medians of interleaved rounds. Shares are of 4.3 TB/s and 790 TFLOP/s, as measured on an H200.",
        "`against` is the engine's time over miaotui's: above 1, miaotui is faster.",
    ]
    for table in dict.fromkeys(row.table for row in rows):
        lines += ["", f"## {table}", "", HEADER, "|---" * HEADER.count(" | ") + "|---|"]
        lines += [line(row) for row in rows if row.table == table]
    return "\n".join(lines) + "\n"


HEADER = (
    "| case | engine | median ms | p10–p90 | per second | share | against | J | device MB | clocks, notes |"
)


def line(row: Row) -> str:
    """One row of a table."""

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    share = "–" if row.share is None else f"{row.share:.0%} of {row.limit}"
    told = "; ".join(part for part in (row.clocks, row.note) if part)
    spread = f"{shown(row.p10_ms, '.3f')}–{shown(row.p90_ms, '.3f')}"
    return (
        f"| {row.case} | {row.engine} | {shown(row.median_ms, '.3f')} | {spread} | {shown(row.rate, ',.1f')} "
        f"| {share} | {shown(row.ratio, '.2f')} | {shown(row.joules, '.3g')} "
        f"| {shown(row.memory_mb, ',.0f')} | {told} |"
    )


@dataclass(frozen=True, slots=True)
class Case:
    """What the engines of one case do, and what its figures are against.

    ``units``: tokens or images of a sample; ``work``: bytes or operations of a sample; ``works``: of engines
    that differ.
    """

    table: str
    name: str
    units: float
    work: float
    limit: str
    works: Mapping[str, float] = field(default_factory=dict)


def compare(report: Report, case: Case, samples: Mapping[str, Callable[[], object]]) -> None:
    """Time samples interleaved; each engine once before, where one that fails falls out with its reason."""
    alive: dict[str, list[float]] = {}
    for name, sample in samples.items():
        try:
            sample()
            sample()
            alive[name] = []
        except Exception as error:
            report.add(Row(case.table, case.name, name, note=reason(error)))
    for number in range(report.setting.rounds):
        for name in list(alive)[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            samples[name]()
            alive[name].append(time.perf_counter() - start)
    medians = {name: float(np.median(seconds)) for name, seconds in alive.items()}
    for name, seconds in alive.items():
        work = None if report.setting.tiny else case.works.get(name, case.work)
        usage = metered(samples[name], report.counters, report.setting.stretch)
        low, high = (float(q) * 1e3 for q in np.quantile(seconds, [0.1, 0.9]))
        limit = MEMORY if case.limit == "memory" else COMPUTE
        report.add(
            Row(
                case.table, case.name, name, medians[name] * 1e3, low, high, case.units / medians[name],
                None if work is None else work / medians[name] / limit, case.limit,
                medians[name] / medians[OURS] if OURS in medians else None,
                None if usage.per_run is None else usage.per_run / case.units,
                None if usage.memory_peak is None else usage.memory_peak / 1e6,
                "" if usage.clocks is None else "{}..{} MHz".format(*usage.clocks),
                ", ".join(usage.throttling or ()),
            )
        )  # fmt: skip


def reason(error: BaseException) -> str:
    """The first line of an error, for a cell."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:160].replace("|", "/")
