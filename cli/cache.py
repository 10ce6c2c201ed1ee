"""``miaotui cache ls|clean``: what was measured once and kept on disk."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer

from . import arguments as a
from .console import Format, print_json, stdout


class Action(StrEnum):
    """What is done with the cache."""

    ls = "ls"
    clean = "clean"


Do = Annotated[Action, typer.Argument(metavar="ls|clean", help="List its files, or remove them all.")]


def cache(action: Do = Action.ls, output_format: a.FormatOption = Format.table) -> None:
    """List or remove what was measured once: sensitivities of weights, by model and calibration data."""
    from ..compiler.places import cache_folder
    from ..driver import cache as kept

    folder = cache_folder()
    if action is Action.clean:
        files, size = kept.clean()
        if output_format is Format.json:
            print_json({"schema": 1, "folder": str(folder), "removed": files, "bytes": size})
        else:
            stdout().print(f"{files} files, {size / 1e6:.1f} MB removed from {folder}", soft_wrap=True)
        return
    listed = [
        {
            "file": str(each.path),
            "kind": each.kind,
            "model": each.model,
            "entries": each.entries,
            "bytes": each.size,
            "written": datetime.fromtimestamp(each.written).astimezone().isoformat(timespec="seconds"),
        }
        for each in kept.listed()
    ]
    if output_format is Format.json:
        print_json({"schema": 1, "folder": str(folder), "files": listed})
        return
    from .tables import put, table

    made = table("kind", "model", ">entries", ">kB", "written", "key")
    for each in kept.listed():
        written = datetime.fromtimestamp(each.written).astimezone().isoformat(" ", "minutes")
        kilobytes = f"{each.size / 1e3:.1f}"
        made.add_row(each.kind, each.model, str(each.entries), kilobytes, written, each.path.stem[:12])
    put(stdout(), made)
    stdout().print(f"{len(listed)} files in {folder}", soft_wrap=True)
