"""``miaotui passes``: every pass, what it does, its options, and where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

from . import arguments as a
from .console import Format, print_json, stdout

if TYPE_CHECKING:
    from ..passes.base import Pass

PLACES = ("cpu", "cuda", "native")
"""Pipelines: of ONNX Runtime by device, of native code."""


def passes(output_format: a.FormatOption = Format.table, verbose: a.Verbose = False) -> None:
    """List the passes in pipeline order."""
    listed = listing()
    if output_format is Format.json:
        print_json({"schema": 2, "passes": listed})
        return
    from .tables import put, table

    made = table("pass", "room", "runs at", "what it does")
    for entry in listed:
        options = ",".join(f"{o['name']}={_spelled(o['default'])}" for o in entry["options"])
        name = f"{entry['name']}{{{options}}}" if options else entry["name"]
        runs = _earliest(entry["pipelines"]) or ", ".join(entry["asked_by"]) or "--enable"
        made.add_row(name, entry["room"], runs, entry["summary"])
    put(stdout(), made)


def _spelled(default: object) -> str:
    """An option's default as it is written on the command line."""
    return "+".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _earliest(pipelines: Sequence[str]) -> str:
    """The lowest level of each pipeline: ``-O1``, or ``cpu -O2`` if no other has it; empty if none has.

    >>> _earliest(["cpu:O1", "cpu:O2", "cuda:O1", "native:O1"]), _earliest(["cpu:O2"]), _earliest([])
    ('-O1', 'cpu -O2', '')
    """
    lowest: dict[str, str] = {}
    for place in pipelines:
        device, _, level = place.partition(":")
        lowest.setdefault(device, "-" + level.replace(":", " --precision "))
    if len(lowest) == len(PLACES) and len(set(lowest.values())) == 1:
        return next(iter(lowest.values()))
    return ", ".join(f"{device} {level}" for device, level in lowest.items())


def listing() -> list[dict[str, Any]]:
    """One entry per pass: name, room, summary, options with defaults, pipelines, flags that ask for it."""
    from ..compiler.options import CompileOptions, Precision, Target
    from ..passes.pipeline import all_passes, pipeline

    members: dict[str, list[str]] = {}
    flags = _asked_by()
    for pipe, level, precision in product(PLACES, (0, 1, 2), get_args(Precision)):
        place = f"{pipe}:O{level}"
        options = CompileOptions(
            target=Target("cuda" if pipe == "cuda" else "cpu"),
            backend="native" if pipe == "native" else "ort",
            opt=level,
            precision=precision,
        )
        for step in pipeline(options):
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
            "asked_by": flags.get(name, []),
        }
        for name, step in all_passes().items()
    ]


def _asked_by() -> dict[str, list[str]]:
    """By pass, the options of ``compile`` that stand for it."""
    from ..compiler.options import PATTERNS, CompileOptions
    from ..passes.base import parse_pass_spec
    from ..passes.pipeline import asked

    offered = {f"--sparsity {p}": CompileOptions(sparsity=p if p == "2:4" else f"{p}:0.5") for p in PATTERNS}
    offered["--rank"] = CompileOptions(rank=0.5)
    offered["--cache"] = CompileOptions(backend="native", cache="int8")
    offered["--tune"] = CompileOptions(backend="tvm", tune=1)
    found: dict[str, list[str]] = {}
    for flag, options in offered.items():
        for spec in asked(options):
            found.setdefault(parse_pass_spec(spec)[0], []).append(flag)
    return found


def room(step: Pass) -> str:
    """The folder under ``passes/`` that a pass lives in: ``fusion``, ``lowering/onnxruntime``."""
    parts = type(step).__module__.split(".passes.", 1)[-1].split(".")
    return "/".join(parts[:-1]) or parts[0]
