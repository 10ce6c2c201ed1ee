"""``miaotui bench DIR``: timing, interleaved with another side; of language models prefill and decode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..compiler.errors import OptionError
from . import arguments as a
from .console import Format, print_json, stdout
from .executor import Executor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..runtime.bench import BenchResult
    from ..runtime.generate.bench import GenerationBench, Workload
    from ..runtime.metering import Usage

Against = Annotated[
    str | None,
    typer.Option(
        "--against", metavar="source|DIR", help="The other side.", show_default="source, if it was kept"
    ),
]
Runs = Annotated[
    int | None, typer.Option("--runs", min=5, help="Timed runs of each side.", show_default="50")
]
Seconds = Annotated[float | None, typer.Option("--seconds", help="Bound on the whole measurement.")]
Size = Annotated[str, typer.Option("--size", metavar="batch=8,…", help="Sizes of named dimensions.")]

LANGUAGE = "Language models"
PromptTokens = Annotated[
    str,
    typer.Option("-p", "--prompt-tokens", metavar="512,…", help="Prompt tokens.", rich_help_panel=LANGUAGE,
                 show_default="512"),
]  # fmt: skip
NewTokens = Annotated[
    str,
    typer.Option("-n", "--new-tokens", metavar="128,…", help="New tokens.", rich_help_panel=LANGUAGE,
                 show_default="128"),
]  # fmt: skip
BatchSize = Annotated[
    str,
    typer.Option("-b", "--batch-size", metavar="1,…", help="Rows at once.", rich_help_panel=LANGUAGE,
                 show_default="1"),
]  # fmt: skip
Repeats = Annotated[
    int | None,
    typer.Option("-r", "--repeats", min=1, help="Repeats of each.", rich_help_panel=LANGUAGE,
                 show_default="6"),
]  # fmt: skip


def bench(
    folder: a.Folder,
    against: Against = None,
    runs: Runs = None,
    seconds: Seconds = None,
    threads: a.Threads = None,
    executor: Executor = "threads",
    size: Size = "",
    prompt: PromptTokens = "",
    new: NewTokens = "",
    batch: BatchSize = "",
    repeats: Repeats = None,
    output_format: a.FormatOption = Format.table,
    quiet: a.Quiet = False,
    verbose: a.Verbose = False,
) -> None:
    """Time an executable against the unoptimized model or another folder, interleaved in one process.

    An executable that keeps a KV cache is timed as a language model (TTFT, prefill, decode, TPOT), alone or
    against another folder, unless --size, --runs, --seconds or --against source asks for plain runs.
    """
    from .. import driver
    from ..runtime.bench import BenchResult
    from .progress import watched

    sizes = a.sizes(size)
    opened = driver.open(folder, executor=executor)
    with watched(quiet=quiet) as progress, opened as executable, progress.stage("bench"):
        plain = bool(sizes or runs or seconds or against in executable.manifest.variants)
        result: BenchResult | GenerationBench
        if prompt or new or batch or repeats or (executable.manifest.decoding is not None and not plain):
            result = executable.bench_generation(
                against=against,
                prompt=_counts("-p", prompt or "512"),
                new=_counts("-n", new or "128"),
                batch=_counts("-b", batch or "1"),
                repeats=repeats or 6,
                threads=threads,
            )
        else:
            result = executable.bench(
                against=against, runs=runs or 50, seconds=seconds, threads=threads, sizes=sizes or None
            )
    if output_format is Format.json:
        print_json({"schema": 1, **result.to_json()})
    elif isinstance(result, BenchResult):
        show(result)
    else:
        show_generation(result)


def _counts(flag: str, text: str) -> list[int]:
    """``128,512`` as numbers. Raises: OptionError."""
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise OptionError(flag, f"{text!r} does not parse", f"write {flag} 128 or {flag} 128,512")
    return [int(part) for part in parts]


def show_generation(result: GenerationBench) -> None:
    """One row per workload and candidate; below, the conditions."""
    from .tables import duration, facts, megabytes, put, table

    made = table(
        "", ">prompt", ">new", ">batch", ">TTFT", ">prefill tok/s", ">decode tok/s", ">TPOT p50", ">p99"
    )
    gains = []
    for f in result.figures:
        w = f.workload
        made.add_row(
            f.name, str(w.prompt), str(w.new), str(w.batch), duration(f.ttft), f"{f.prefill_rate:.1f}",
            *("–" if f.decode_rate is None else f"{f.decode_rate:.1f}",),
            *("–" if seconds is None else duration(seconds) for seconds in (f.tpot_p50, f.tpot_p99)),
        )  # fmt: skip
        for name, gain in (("prefill", f.prefill_speedup), ("decode", f.decode_speedup)):
            if gain is not None:
                told = f"{gain.ratio:.2f}× [{gain.low:.2f}, {gain.high:.2f}] (CI95), {gain.verdict}"
                gains.append((f"{name} {_size(w)}", told))
    console, where = stdout(), result.conditions
    put(console, made)
    facts(
        console,
        [
            *gains,
            ("load", ", ".join(f"{name} {duration(seconds)}" for name, seconds in result.load.items())),
            ("repeats", result.figures[0].repeats),
            ("threads", where.threads),
            ("device", f"{where.target}: {where.cpu}, {where.cores} cores, load {where.load:.1f}"),
            ("runtime", f"onnxruntime {where.versions.get('onnxruntime', '?')}"),
            ("peak memory", megabytes(result.peak_rss)),
            *used([(f"{f.name} {_size(f.workload)}", f.usage) for f in result.figures], "token"),
        ],
    )


def used(usages: Sequence[tuple[str, Usage | None]], unit: str) -> list[tuple[str, str]]:
    """What each candidate took of the device by its counters; what is missing says why, once."""
    from .tables import megabytes

    rows: list[tuple[str, str]] = []
    reasons: dict[str, None] = {}
    for name, usage in usages:
        if usage is None:
            continue
        reasons |= dict.fromkeys(f"{key}: {why}" for key, why in usage.why.items() if key != "per_run")
        told = [
            None if usage.per_run is None else f"{usage.per_run:.3g} J per {unit}, {usage.watts or 0:.0f} W",
            None if usage.memory_peak is None else f"{megabytes(usage.memory_peak)} of the device in use",
            None if usage.clocks is None else "clock {}..{} MHz".format(*usage.clocks),
            None if not usage.throttling else f"slowed down by {', '.join(usage.throttling)}",
        ]
        if any(told):
            rows.append((f"device, {name}", "; ".join(part for part in told if part)))
    if len({reason.partition(": ")[2] for reason in reasons}) == 1:
        return [*rows, ("not counted", next(iter(reasons)).partition(": ")[2])]
    return [*rows, *(("not counted", reason) for reason in reasons)]


def _size(workload: Workload) -> str:
    return f"{workload.prompt}+{workload.new}×{workload.batch}"


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
            *used([(item.name, item.usage) for item in result.candidates], "run"),
        ],
    )
