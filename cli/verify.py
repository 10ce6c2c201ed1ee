"""``miaotui verify DIR``: compare an executable with its source framework, or with its golden data."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..compiler.errors import VerificationError
from . import arguments as a
from .console import Format, print_json, stdout
from .executor import Executor

if TYPE_CHECKING:
    from ..driver.mending import Repair as Mended
    from ..driver.verification import Check

Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", metavar="MODEL", help="The source model.", show_default="golden data in the folder"
    ),
]
InputFile = Annotated[
    list[str], typer.Option("--input", "-i", metavar="FILE.npz", help="Inputs, with --reference.")
]
Tolerance = Annotated[
    float | None,
    typer.Option("--tolerance", help="Greatest scaled error.", show_default="what it was certified with"),
]
Layers = Annotated[
    bool, typer.Option("--layers/--no-layers", help="Compare layer by layer too (--reference).")
]
Repair = Annotated[
    bool,
    typer.Option(
        "--repair/--no-repair",
        help="On a mismatch, write the folder again with what costs least in higher precision.",
    ),
]
Bisect = Annotated[
    bool, typer.Option("--bisect/--no-bisect", help="On a mismatch, find the pass and the node.")
]


def verify(
    folder: a.Folder,
    reference: Reference = None,
    inputs: InputFile = [],  # noqa: B006 - typer copies it
    tolerance: Tolerance = None,
    layers: Layers = True,
    bisect: Bisect = True,
    repair: Repair = False,
    executor: Executor = "threads",
    output_format: a.FormatOption = Format.table,
    quiet: a.Quiet = False,
    verbose: a.Verbose = False,
) -> None:
    """Compare an executable with its source, layer by layer; exit code 1 if they differ.

    With --repair an executable that differs is made again within the tolerance, and the exit code is 0.
    """
    from .. import driver
    from .progress import watched

    arrays = a.example_arrays(inputs)
    with watched(quiet=quiet) as progress, driver.open(folder, executor=executor) as executable:
        with progress.stage("verify"):
            result = driver.verify(
                executable, reference, arrays, tolerance=tolerance, layers=layers, bisect=bisect
            )
        mended = None
        if repair and not result.ok:
            mended = driver.repair(
                executable, result, reference, arrays, tolerance=tolerance, progress=progress
            )
    if output_format is Format.json:
        culprit = None if result.culprit is None else asdict(result.culprit)
        why = result.why or None
        told = {"schema": 1, **result.verification.to_json(), "culprit": culprit, "not_bisected": why}
        print_json({**told, "repair": None if mended is None else mended.to_json()})
    else:
        show(result)
        if mended is not None:
            show_repair(mended)
    if not result.ok and mended is None:
        raise typer.Exit(VerificationError.exit_code)


def show_repair(mended: Mended) -> None:
    """What is more precise now, and what that cost."""
    from .tables import facts, megabytes, put, table

    console = stdout()
    console.print()
    if mended.raised:
        made = table("weights", "before", "after", ">bytes")
        for each in mended.raised:
            made.add_row(", ".join(each.weights), each.before, each.after, f"{each.nbytes:+,}")
        put(console, made)
    before, after = mended.nbytes
    speed = None if mended.race is None else mended.race.speedup
    times = [] if mended.race is None else [c.latency.median * 1e3 for c in mended.race.candidates]
    facts(
        console,
        [
            ("repaired", f"error {mended.error[0]:.2g} → {mended.error[1]:.2g}, budget {mended.budget:.2g}"),
            ("float32", ", ".join(mended.kept)),
            ("left out", "; ".join(f"{name}: {why}" for name, why in mended.left_out.items())),
            ("size", f"{megabytes(before)} → {megabytes(after)}"),
            (
                "latency",
                None if speed is None else f"{times[1]:.2f} → {times[0]:.2f} ms, {speed.ratio:.2f}× as fast",
            ),
        ],
    )


def show(result: Check) -> None:
    """Outputs, then layers in execution order; where they differ, the pass and the node to blame."""
    from .tables import put, table

    console, found = stdout(), result.verification
    made = table("", "", ">scaled error", ">relative", ">cosine", "")
    rows = [("output", item.name, item) for item in found.outputs]
    rows += [("layer", row.layer, row.difference) for row in found.layers]
    for kind, name, item in rows:
        verdict = "ok" if item.ok else f"FAILS {item.note}".rstrip()
        figures = (f"{item.scaled:.2e}", f"{item.relative:.2e}", f"{item.cosine:.6f}")
        made.add_row(kind, name, *figures, verdict, style=None if item.ok else "red")
    put(console, made)
    verdict = "equals" if result.ok else "DIFFERS from"
    bound = f"scaled error {found.error:.2e}, tolerance {found.tolerance:.0e}"
    console.print(f"{found.variant} {verdict} {found.reference}: {bound}", style="bold", soft_wrap=True)
    if found.note:
        console.print(f"layers not compared: {found.note}", soft_wrap=True)
    if found.first_excess is not None:
        console.print(f"first layer that is off: {found.first_excess.layer}", soft_wrap=True)
    if result.culprit is not None:
        console.print(f"culprit: {result.culprit}", style="red", soft_wrap=True)
    elif result.why:
        console.print(f"not bisected: {result.why}", soft_wrap=True)
