"""The table of a partitioned program: its mesh, and what each stage runs, holds and hands on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from . import tables


def show_partition(console: Console, partition: Mapping[str, Any] | None) -> None:
    """Print the mesh and a table of the stages, one for each entry; nothing for a program in one piece."""
    if partition is None:
        return
    mesh = partition["mesh"]
    sizes = " × ".join(f"{mesh[axis]} {name}" for axis, name in _AXES.items() if mesh[axis] > 1)
    for entry, facts in partition["entries"].items():
        title = f"{sizes}: {partition['ranks']} ranks, {entry!r}"
        columns = ("stage", ">nodes", ">weights", ">ms", ">collectives ms", ">receiving ms")
        made = tables.table(*columns, title=title)
        for number, cost in enumerate(facts["stages"]):
            held = partition["weights"][number * mesh["tp"] : (number + 1) * mesh["tp"]]
            times = (f"{cost[key] * 1e3:.3f}" for key in ("seconds", "collectives", "receiving"))
            made.add_row(str(number), str(cost["nodes"]), tables.megabytes(max(held)), *times)
        tables.put(console, made)
        at = "".join(f", {name} {size}" for name, size in facts["sizes"].items())
        told = f"by the cost model on {facts['device']}{at}: balance {facts['balance']:.2f}"
        console.print(f"{told}, {facts['sent']:,} bytes sent, {facts['meetings']} collectives", style="dim")
    console.print()


_AXES = {"dp": "replicas", "pp": "stages", "tp": "shards"}
