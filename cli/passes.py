"""``miaotui passes``: every pass, what it does, its options, and where it runs."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

from . import arguments as a
from .console import Format, print_json, stdout

if TYPE_CHECKING:
    from ..passes.base import Pass


def passes(output_format: a.FormatOption = Format.table, verbose: a.Verbose = False) -> None:
    """List the passes in pipeline order."""
    listed = listing()
    if output_format is Format.json:
        print_json({"schema": 1, "passes": listed})
        return
    from .tables import table

    made = table("pass", "room", "runs at", "what it does")
    for entry in listed:
        options = ", ".join(f"{o['name']}={o['default']}" for o in entry["options"])
        name = f"{entry['name']}{{{options}}}" if options else entry["name"]
        made.add_row(name, entry["room"], " ".join(entry["pipelines"]) or "--enable", entry["summary"])
    stdout().print(made)


def listing() -> list[dict[str, Any]]:
    """One entry per pass: name, room, summary, options with defaults, and the pipelines it is part of."""
    from ..compiler.options import CompileOptions, Device, Target
    from ..passes.pipeline import all_passes, pipeline

    members: dict[str, list[str]] = {}
    for device in get_args(Device):
        for level in (0, 1, 2):
            for step in pipeline(CompileOptions(target=Target(device), opt=level)):
                members.setdefault(step.name, [])
                if (place := f"{device}:O{level}") not in members[step.name]:
                    members[step.name].append(place)
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
