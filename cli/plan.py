"""``miaotui plan MODEL --devices 8xh100``: which mesh serves a goal best, and what it would give."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ..compiler.errors import OptionError, ToolError
from . import arguments as a
from .console import Format, print_json, stderr, stdout

if TYPE_CHECKING:
    from ..compiler.planner.forecast import Forecast
    from ..compiler.planner.search import Planned
    from ..compiler.planner.simulate import Simulation

SERVING, MESH = "Serving", "Mesh"
SHOWN = 8
"""Meshes in the table, the best first; --verbose shows all."""

Devices: TypeAlias = Annotated[
    str, typer.Option("--devices", metavar="NxNAME", help="h100, 8xh100, 2xcpu-local, ...")
]
Goal: TypeAlias = Annotated[
    str, typer.Option("--goal", metavar="latency|throughput|cost", help="What is made best.")
]
Precision: TypeAlias = Annotated[
    str | None,
    typer.Option("--precision", metavar="fp16|fp8|int4|...", help="Weights; default: as the model has them."),
]
Cache: TypeAlias = Annotated[str, typer.Option("--cache", metavar="fp16|fp8|...", help="Keys and values.")]
Prompt: TypeAlias = Annotated[int, typer.Option("--prompt", min=1, help="Tokens of a prompt.")]
Written: TypeAlias = Annotated[int, typer.Option("--output", min=1, help="Tokens that a request gets.")]
Concurrency: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--concurrency",
        min=1,
        help="Requests at a time; default: 1 for latency, else as many as memory holds.",
    ),
]
Price: TypeAlias = Annotated[
    float | None,
    typer.Option("--price", min=0.0, help="Dollars of a device's hour.", rich_help_panel=SERVING),
]
MaxTTFT: TypeAlias = Annotated[
    float | None,
    typer.Option("--max-ttft", min=0.0, help="Milliseconds to the first token.", rich_help_panel=SERVING),
]
MaxTPOT: TypeAlias = Annotated[
    float | None,
    typer.Option("--max-tpot", min=0.0, help="Milliseconds between tokens.", rich_help_panel=SERVING),
]
Stack: TypeAlias = Annotated[
    str | None,
    typer.Option("--stack", help="Whose host costs are planned with.", rich_help_panel=SERVING),
]
DP: TypeAlias = Annotated[int | None, typer.Option("--dp", min=1, help="Replicas.", rich_help_panel=MESH)]
PP: TypeAlias = Annotated[int | None, typer.Option("--pp", min=1, help="Stages.", rich_help_panel=MESH)]
TP: TypeAlias = Annotated[int | None, typer.Option("--tp", min=1, help="Ranks.", rich_help_panel=MESH)]
DeviceFile: TypeAlias = Annotated[
    list[Path],
    typer.Option("--device-file", metavar="FILE", help="A device of your own, as TOML; repeatable."),
]
Gantt: TypeAlias = Annotated[
    Path | None, typer.Option("--gantt", metavar="FILE.png|svg", help="Picture of the simulated stages.")
]
Simulate: TypeAlias = Annotated[
    bool, typer.Option("--simulate/--no-simulate", help="Simulate the best mesh, request by request.")
]
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="The same as --format json.")]


def plan(
    model: a.Model,
    devices: Devices,
    goal: Goal = "throughput",
    precision: Precision = None,
    cache: Cache = "fp16",
    prompt: Prompt = 512,
    output: Written = 256,
    concurrency: Concurrency = None,
    price: Price = None,
    max_ttft: MaxTTFT = None,
    max_tpot: MaxTPOT = None,
    stack: Stack = None,
    dp: DP = None,
    pp: PP = None,
    tp: TP = None,
    device_file: DeviceFile = [],  # noqa: B006 - typer copies it
    simulate: Simulate = True,
    gantt: Gantt = None,
    output_format: a.FormatOption = Format.table,
    as_json: Json = False,
    verbose: a.Verbose = False,
) -> None:
    """Rank the meshes of given devices by what serving a model on them would give; nothing is run.

    MODEL is a Hugging Face folder or its config.json, a GGUF file or any other model; weights are not needed.
    Of an encoder a prompt is all there is; of other models a sample.
    """
    from ..compiler.planner.catalogue import devices as devices_of
    from ..compiler.planner.gantt import check_picture, draw
    from ..compiler.planner.layout import told
    from ..compiler.planner.load import Load
    from ..compiler.planner.precision import cache_bits
    from ..compiler.planner.search import GOALS, Wish
    from ..compiler.planner.search import plan as search
    from ..driver.planning import described

    if goal not in GOALS:
        raise OptionError("--goal", f"{goal!r} is none", f"give one of {', '.join(GOALS)}")
    cache_bits(cache)
    if gantt is not None:
        check_picture(gantt)
    count, device = devices_of(devices, device_file)
    network, own = described(model)
    if goal == "latency" and concurrency is None:
        concurrency = 1
    writes = network.kind == "decoder"
    load = Load(1 if network.kind == "graph" else prompt, output if writes else 0, concurrency)
    wish = Wish(
        load,
        goal,
        _precision(precision, own),
        cache,
        stack,
        price,
        math.inf if max_ttft is None else max_ttft / 1e3,
        math.inf if max_tpot is None else max_tpot / 1e3,
        dp,
        pp,
        tp,
    )
    planned = search(network, count, device, wish)
    simulation = _simulated(planned, wanted=simulate or gantt is not None, needed=gantt is not None)
    if gantt is not None and simulation is not None:
        draw(simulation, f"{network.name} on {count}x{device.name}, {told(planned.best.mesh)}", gantt)
    if as_json or output_format is Format.json:
        print_json(report(planned, simulation))
    else:
        show(planned, simulation, everything=verbose)


def _precision(asked: str | None, own: str) -> str:
    """Raises: OptionError for an unknown precision."""
    from ..compiler.planner.precision import weight_bits

    if asked is not None:
        weight_bits(asked)
    return own if asked is None else asked


def _simulated(planned: Planned, *, wanted: bool, needed: bool) -> Simulation | None:
    """The best mesh's simulation; without simpy a note instead, unless it is ``needed``."""
    from ..compiler.planner.simulate import simulate

    if not wanted:
        return None
    best = planned.best
    load = replace(planned.wish.load, concurrency=best.concurrency)
    try:
        return simulate(planned.cost(best.mesh), load, best.micro_batch)
    except ToolError as error:
        if needed:
            raise
        problem = error.problems[0]
        stderr().print(f"note: not simulated: {problem.place} {problem.fact}; {problem.fix}", style="yellow")
        return None


def report(planned: Planned, simulation: Simulation | None) -> dict[str, Any]:
    """Everything that was predicted, as plain JSON."""
    network, device, wish = planned.network, planned.device, planned.wish
    return {
        "schema": 1,
        "model": {
            "name": network.name,
            "kind": network.kind,
            "parameters": network.parameters,
            "layers": network.layers,
            "heads": network.heads,
            "kv_heads": network.kv_heads,
            "experts": network.experts,
        },
        "devices": {"name": device.name, "title": device.title, "count": planned.devices},
        "load": {
            "prompt": wish.load.prompt,
            "output": wish.load.output,
            "concurrency": wish.load.concurrency,
        },
        "goal": wish.goal,
        "precision": wish.precision,
        "cache": wish.cache,
        "meshes": {"possible": planned.meshes, "fitting": planned.fitting, "in_time": len(planned.forecasts)},
        "plans": [_entry(found, wish.load.output) for found in planned.forecasts],
        "simulated": None if simulation is None else _measured(simulation),
    }


def _entry(found: Forecast, output: int) -> dict[str, Any]:
    memory = found.memory
    return {
        "dp": found.mesh.dp,
        "pp": found.mesh.pp,
        "tp": found.mesh.tp,
        "devices": found.mesh.size,
        "micro_batch": found.micro_batch,
        "micro_batches": found.micro_batches,
        "concurrency": found.concurrency,
        "ttft_seconds": found.ttft,
        "tpot_seconds": found.tpot,
        "latency_seconds": found.latency(output),
        "rate": found.rate,
        "utilisation": found.utilisation,
        "bubble": found.bubble,
        "communication": found.communication,
        "dollars_per_million": found.dollars,
        "memory_bytes": {
            "capacity": memory.capacity,
            "weights": memory.weights,
            "activations": memory.activations,
            "cache": memory.cache,
        },
    }


def _measured(simulation: Simulation) -> dict[str, Any]:
    first, later = simulation.ttft or (None, None), simulation.tpot or (None, None)
    return {
        "seconds": simulation.seconds,
        "rate": simulation.rate,
        "ttft_seconds": {"p50": first[0], "p99": first[1]},
        "tpot_seconds": {"p50": later[0], "p99": later[1]},
        "bubble": simulation.bubble,
        "busy": simulation.busy,
    }


def show(planned: Planned, simulation: Simulation | None, *, everything: bool = False) -> None:
    """The ranked meshes; above, what was asked; below, the simulation of the best."""
    from ..compiler.planner.layout import told
    from .tables import duration, facts, put, table

    network, wish, load = planned.network, planned.wish, planned.wish.load
    unit = "tok/s" if load.output else "requests/s"
    lengths = f"{load.prompt} tokens in, {load.output} out" if load.output else f"{load.prompt} tokens"
    at_once = "as many at a time as fit" if load.concurrency is None else f"{load.concurrency} at a time"
    facts(
        stdout(),
        [
            ("model", f"{network.name}: {_parameters(network.parameters)}, {network.layers} layers"),
            ("devices", f"{planned.devices} × {planned.device.title}"),
            ("weights", f"{wish.precision}, cache {wish.cache}"),
            ("requests", f"{'samples' if network.kind == 'graph' else lengths}, {at_once}"),
            ("goal", wish.goal),
        ],
    )
    headings = ["mesh", ">at a time", ">micro-batch", ">TTFT", ">TPOT", f">{unit}", ">used", ">bubble"]
    headings += [">exchange", ">weights GiB", ">cache GiB", *([">$ per 1M"] if planned.best.dollars else [])]
    made = table(*headings)
    shown = planned.forecasts if everything else planned.forecasts[:SHOWN]
    for found in shown:
        cells = [told(found.mesh), str(found.concurrency), f"{found.micro_batch:.0f}", duration(found.ttft)]
        cells += [duration(found.tpot) if load.output else "–", f"{found.rate:,.0f}"]
        cells += [f"{share:.1%}" for share in (found.utilisation, found.bubble, found.communication)]
        cells += [_gib(held) for held in (found.memory.weights, found.memory.cache)]
        cells += [f"{found.dollars:.3g}"] if found.dollars else []
        made.add_row(*cells)
    put(stdout(), made)
    more = len(planned.forecasts) - len(shown)
    fitting = f"{planned.fitting} of {planned.meshes} meshes fit" + (f", {more} more with -v" if more else "")
    facts(stdout(), [("memory", fitting), ("simulated", _told(simulation, unit))])


def _told(simulation: Simulation | None, unit: str) -> str | None:
    from .tables import duration

    if simulation is None:
        return None
    parts = [f"{simulation.rate:,.0f} {unit}"]
    for name, found in (("TTFT", simulation.ttft), ("TPOT", simulation.tpot)):
        if found is not None:
            parts.append(f"{name} {duration(found[0])} (p99 {duration(found[1])})")
    return ", ".join([*parts, f"bubble {simulation.bubble:.1%}"])


def _gib(size: float) -> str:
    """One decimal, two figures of less than one."""
    gib = max(size, 0.0) / 2**30
    return f"{gib:.1f}" if gib >= 1 else f"{gib:.2g}"


def _parameters(count: float) -> str:
    return f"{count / 1e9:.1f} B parameters" if count >= 1e9 else f"{count / 1e6:.1f} M parameters"
