"""``miaotui passes``: every pass, what it does, its options, and where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, get_args

from . import arguments as a
from .console import Format, print_json, stdout

if TYPE_CHECKING:
    from ..passes.base import Pass

DEVICES: tuple[Literal["cpu", "cuda"], ...] = ("cpu", "cuda")


def passes(output_format: a.FormatOption = Format.table, verbose: a.Verbose = False) -> None:
    """List the passes in pipeline order."""
    listed = listing()
    if output_format is Format.json:
        print_json({"schema": 1, "passes": listed})
        return
    from .tables import put, table

    made = table("pass", "room", "runs at", "what it does")
    for entry in listed:
        options = ",".join(f"{o['name']}={_spelled(o['default'])}" for o in entry["options"])
        name = f"{entry['name']}{{{options}}}" if options else entry["name"]
        made.add_row(name, entry["room"], _earliest(entry["pipelines"]), entry["summary"])
    put(stdout(), made)


def _spelled(default: object) -> str:
    """An option's default as it is written on the command line."""
    return "+".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _earliest(pipelines: Sequence[str]) -> str:
    """The lowest level of each device: ``-O1``, or ``cpu -O2`` if the other device never runs it.

    >>> _earliest(["cpu:O1", "cpu:O2", "cuda:O1"]), _earliest(["cpu:O2"]), _earliest([])
    ('-O1', 'cpu -O2', '--enable')
    """
    lowest: dict[str, str] = {}
    for place in pipelines:
        device, _, level = place.partition(":")
        lowest.setdefault(device, "-" + level.replace(":", " --precision "))
    if len(lowest) == len(DEVICES) and len(set(lowest.values())) == 1:
        return next(iter(lowest.values()))
    return ", ".join(f"{device} {level}" for device, level in lowest.items()) or "--enable"


def listing() -> list[dict[str, Any]]:
    """One entry per pass: name, room, summary, options with defaults, and the pipelines it is part of."""
    from ..compiler.options import CPU_ONLY, CompileOptions, Precision, Target
    from ..passes.pipeline import all_passes, pipeline

    members: dict[str, list[str]] = {}
    for device, level, precision in product(DEVICES, (0, 1, 2), get_args(Precision)):
        if precision in CPU_ONLY and device != "cpu":
            continue
        place = f"{device}:O{level}"
        for step in pipeline(CompileOptions(target=Target(device), opt=level, precision=precision)):
            known = members.setdefault(step.name, [])
            if place not in known:
                known.append(place if precision == "fp32" else f"{place}:{precision}")
    return [
        {
            "name": name,
            "room": room(step),
            "summary": step.summary,
            "optional": step.optional,
            "options": [
                {"name": f.name.replace("_", "-"), "default": getattr(step, f.name)} for f in fields(step)
            ],
            "pipelines": members.get(name, []),
        }
        for name, step in all_passes().items()
    ]


def room(step: Pass) -> str:
    """The folder under ``passes/`` that a pass lives in: ``fusion``, ``lowering/onnxruntime``."""
    parts = type(step).__module__.split(".passes.", 1)[-1].split(".")
    return "/".join(parts[:-1]) or parts[0]
