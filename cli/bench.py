"""``miaotui bench DIR``: interleaved timing against the unoptimized model or another folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import arguments as a
from .console import Format, print_json, stdout

if TYPE_CHECKING:
    from ..runtime.bench import BenchResult

Against = Annotated[
    str | None,
    typer.Option(
        "--against", metavar="source|DIR", help="The other side.", show_default="source, if it was kept"
    ),
]
Runs = Annotated[int, typer.Option("--runs", min=5, help="Timed runs of each side.")]
Seconds = Annotated[float | None, typer.Option("--seconds", help="Bound on the whole measurement.")]
Size = Annotated[str, typer.Option("--size", metavar="batch=8,…", help="Sizes of named dimensions.")]


def bench(
    folder: a.Folder,
    against: Against = None,
    runs: Runs = 50,
    seconds: Seconds = None,
    threads: a.Threads = None,
    size: Size = "",
    output_format: a.FormatOption = Format.table,
    quiet: a.Quiet = False,
    verbose: a.Verbose = False,
) -> None:
    """Time an executable against the unoptimized model or another folder, interleaved in one process."""
    from .. import driver
    from .progress import watched

    sizes = a.sizes(size)
    with watched(quiet=quiet) as progress, driver.open(folder) as executable, progress.stage("bench"):
        result = executable.bench(
            against=against, runs=runs, seconds=seconds, threads=threads, sizes=sizes or None
        )
    if output_format is Format.json:
        print_json({"schema": 1, **result.to_json()})
    else:
        show(result)


def show(result: BenchResult) -> None:
    """One row per candidate; below, the speedup with its interval and the conditions it holds under."""
    from .tables import duration, facts, megabytes, put, table

    made = table("", ">p50", ">p90", ">p99", ">mean", ">runs", ">load", ">first call")
    for item in result.candidates:
        times = (item.latency.median, item.latency.p90, item.latency.p99, item.latency.mean)
        made.add_row(
            item.name,
            *map(duration, times),
            str(item.latency.runs),
            duration(item.load),
            duration(item.first_call),
        )
    console, where = stdout(), result.conditions
    put(console, made)
    gain = result.speedup
    told = (
        None
        if gain is None
        else f"{gain.ratio:.2f}× [{gain.low:.2f}, {gain.high:.2f}] (CI95), {gain.verdict}"
    )
    shapes = ", ".join(
        f"{name} {'×'.join(map(str, shape)) or 'scalar'}" for name, shape in result.inputs.items()
    )
    device = where.gpu or f"{where.cpu}, {where.cores} cores, load {where.load:.1f}"
    facts(
        console,
        [
            ("speedup", told),
            ("inputs", shapes),
            ("threads", where.threads),
            ("device", f"{where.target}: {device}"),
            ("runtime", f"onnxruntime {where.versions.get('onnxruntime', '?')}"),
            ("peak memory", megabytes(result.peak_rss)),
            ("sessions", None if result.together else "one at a time: they don't fit in memory together"),
        ],
    )
