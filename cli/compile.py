"""``miaotui compile MODEL``: a model in, a proved and timed executable folder out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..compiler.errors import UnsupportedError
from . import arguments as a
from .console import Format, print_json, stdout

if TYPE_CHECKING:
    from ..compiler.options import CompileOptions
    from .progress import Stages


def compile_model(
    model: a.Model,
    output: a.Output = None,
    target: a.Target = "cpu",
    backend: a.Backend = "auto",
    precision: a.Precision = "fp32",
    sparsity: a.Sparsity = None,
    rank: a.Rank = None,
    cache: a.Cache = "auto",
    tune: a.Tune = 0,
    calib: a.Calib = None,
    inputs: a.Inputs = [],  # noqa: B006 - typer copies it
    dims: a.Dims = [],  # noqa: B006
    dp: a.Replicas = 1,
    pp: a.PipelineStages = 1,
    tp: a.TensorShards = 1,
    memory: a.Memory = None,
    opt: a.Level = 2,
    enable: a.Enable = [],  # noqa: B006
    disable: a.Disable = [],  # noqa: B006
    why_not: a.WhyNot = [],  # noqa: B006
    dry_run: a.DryRun = False,
    save_ir: a.SaveIR = None,
    budget: a.Budget = None,
    goal: a.Goal = "speed",
    threads: a.Threads = None,
    timing: a.Timing = 8.0,
    strict: a.Strict = True,
    verify: a.Verify = True,
    seed: a.Seed = 0,
    keep_source: a.KeepSource = None,
    numerics: a.Numerics = False,
    output_format: a.FormatOption = Format.table,
    quiet: a.Quiet = False,
    verbose: a.Verbose = False,
    log_file: a.LogFile = None,
) -> None:
    """Compile a model into an executable folder, prove it against its source and time it."""
    from .progress import watched

    options = a.compile_options(
        target=target,
        backend=backend,
        precision=precision,
        opt=opt,
        enable=enable,
        disable=disable,
        inputs=inputs,
        dims=dims,
        sparsity=sparsity,
        rank=rank,
        cache=cache,
        tune=tune,
        calib=calib,
        budget=budget,
        goal=goal,
        strict=strict,
        threads=threads,
        timing=timing,
        verify=verify,
        keep_source=keep_source,
        numerics=numerics,
        seed=seed,
        dp=dp,
        pp=pp,
        tp=tp,
        memory=memory,
    )
    known_passes(why_not)
    examples = a.example_arrays(inputs)
    folder = default_output(model) if output is None else output
    with watched(quiet=quiet, verbose=verbose, log_file=log_file) as progress:
        if dry_run:
            report = _plan(model, options, examples, progress)
        else:
            report = _compile(model, options, examples, folder, save_ir, progress)
    if output_format is Format.json:
        print_json(report)
    else:
        show(report, why_not=why_not, everything=verbose)
    if report.get("unsupported"):
        raise typer.Exit(UnsupportedError.exit_code)


def _plan(model: str, options: CompileOptions, examples: Any, progress: Stages) -> dict[str, Any]:
    from .. import driver

    return {**driver.plan(model, options, inputs=examples, progress=progress).report, "dry_run": True}


def _compile(
    model: str, options: CompileOptions, examples: Any, folder: Path, save_ir: Path | None, progress: Stages
) -> dict[str, Any]:
    from .. import driver

    compiled = driver.compile(
        model, options, output=folder, inputs=examples, progress=progress, save_ir=save_ir
    )
    with compiled as executable:
        return {**executable.report, "dry_run": False, "output": str(folder)}


METRICS = {"scaled": "scaled", "kl": "nats of KL a token"}
"""How the error is told, by the report's ``metric``."""


def _chosen(budget: Mapping[str, Any] | None) -> str | None:
    """What a budget chose, in a line: its error, and how many groups of weights are in which format."""
    if budget is None:
        return None
    counts: dict[str, int] = {}
    for row in budget["groups"]:
        counts[row["format"]] = counts.get(row["format"], 0) + 1
    formats = ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda i: -i[1]))
    used = f"{budget['error']:.2g} of {budget['budget']:.2g} {METRICS[budget['metric']]}"
    return f"{used}; groups of weights: {formats or 'none'}"


def default_output(model: str) -> Path:
    """``dir/bert.onnx`` → ``bert.miaotui`` in the current folder."""
    path = Path(model).resolve()
    return Path((path.name if path.is_dir() else path.stem) + ".miaotui")


def known_passes(names: Sequence[str]) -> None:
    """Raises: OptionError for a name in ``--why-not`` that is no pass."""
    if not names:
        return
    from difflib import get_close_matches

    from ..compiler.errors import OptionError, Problem
    from ..passes.pipeline import all_passes

    known = all_passes()
    problems = [
        Problem(
            "--why-not",
            f"no pass {name!r}",
            f"did you mean {' or '.join(near)}?" if near else "see miaotui passes",
        )
        for name in names
        if name not in known
        for near in [get_close_matches(name, known, n=3)]
    ]
    if problems:
        raise OptionError.of(problems)


def show(report: Mapping[str, Any], *, why_not: Sequence[str] = (), everything: bool = False) -> None:
    """The short table at the end of a compile or a dry run."""
    from . import tables

    console = stdout()
    tables.put(
        console, tables.operators(report["ops"]["before"], report["ops"]["after"], everything=everything)
    )
    console.print()
    if report.get("waterfall"):
        tables.put(console, tables.waterfall(report, everything=everything))
    elif everything or any(entry["changed"] or entry["reverted"] for entry in report["passes"]):
        tables.put(console, tables.fired(report["passes"], everything=everything))
    else:
        console.print("no pass changed anything")
    console.print()
    from ..driver.decision import told
    from .partition import show_partition

    show_partition(console, report.get("partition"))
    error, times = report.get("error") or {}, report.get("latency") or {}
    sizes = report.get("sizes") or {}
    tables.facts(
        console,
        [
            ("unsupported", "\n".join(map(str, report.get("unsupported", ())))),
            ("error", _told(error)),
            ("faithful", _told(error.get("faithful") or {})),
            ("budget", _chosen(report.get("budget"))),
            ("backend", "\n".join(told(report.get("choice")))),
            ("latency", tables.latency(times)),
            ("size", ", ".join(f"{name} {tables.megabytes(size)}" for name, size in sizes.items())),
            ("not measured", _unmeasured(report.get("waterfall") or {})),
            *(("note", note) for note in report.get("notes", ())),
            ("output", report.get("output")),
        ],
    )
    if why_not:
        console.print()
        tables.put(console, tables.why_not(report["passes"], why_not))


def _told(error: Mapping[str, Any]) -> str | None:
    """An error with its tolerance and what it is against, in a line."""
    if error.get("scaled") is None:
        return None
    figures = f"{error['scaled']:.2g} {METRICS[error['metric']]}, tolerance {error['tolerance']:.2g}"
    return f"{figures}, against {error['reference']}"


def _unmeasured(fall: Mapping[str, Any]) -> str:
    """Which approximating passes the waterfall has no figures of, and why."""
    return f"{', '.join(fall['unmeasured'])}: {fall['why']}" if fall.get("unmeasured") else ""
