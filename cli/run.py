"""``miaotui run DIR``: run an executable on arrays of an .npz file, or on made-up inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import arguments as a
from .console import Format, print_json, stdout
from .executor import Executor

if TYPE_CHECKING:
    from ..compiler.reference import Array, Arrays
    from ..runtime.executable import Executable

InputFile = Annotated[Path | None, typer.Option("--input", "-i", metavar="FILE.npz", help="Inputs by name.")]
OutputFile = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE.npz", help="Where outputs go.")
]
Random = Annotated[bool, typer.Option("--random", help="Take the golden inputs, or make some up.")]
Size = Annotated[
    str, typer.Option("--size", metavar="batch=8,…", help="Sizes of named dimensions for --random.")
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Variant to run.", show_default="the one compile chose")
]


def run(
    folder: a.Folder,
    inputs: InputFile = None,
    output: OutputFile = None,
    random: Random = False,
    size: Size = "",
    variant: Variant = None,
    threads: a.Threads = None,
    executor: Executor = "threads",
    seed: a.Seed = 0,
    output_format: a.FormatOption = Format.table,
    verbose: a.Verbose = False,
) -> None:
    """Run an executable once; write its outputs, or summarize them."""
    from .. import driver

    arrays = _given(folder, inputs, random)
    with driver.open(folder, executor=executor) as executable:
        if arrays is None:
            arrays = _made_up(executable, a.sizes(size), seed)
        results = executable.runner(variant, threads=threads).run(arrays)
    if output is not None:
        _write(output, results)
    if output_format is Format.json:
        print_json({"schema": 1, "outputs": [_summary(n, v) for n, v in results.items()], "file": output})
        return
    from .tables import put, table

    made = table("output", "dtype", "shape", ">min", ">mean", ">max")
    for name, value in results.items():
        s = _summary(name, value)
        numbers = ("–" if s[key] is None else f"{s[key]:.6g}" for key in ("min", "mean", "max"))
        made.add_row(name, s["dtype"], "×".join(map(str, s["shape"])) or "scalar", *numbers)
    put(stdout(), made)


def _given(folder: Path, inputs: Path | None, random: bool) -> Arrays | None:
    from ..compiler.errors import OptionError

    if (inputs is None) != random:
        fact = "is missing" if inputs is None else "and --random exclude each other"
        raise OptionError("--input", fact, f"miaotui run {folder} --input x.npz, or --random")
    return None if inputs is None else a.read_npz(inputs)


def _made_up(executable: Executable, sizes: Mapping[str, int], seed: int) -> Arrays:
    """The golden inputs in the sizes asked for; without golden data arrays made from the signature."""
    from ..compiler.artifact import Artifact
    from ..runtime.samples import sample_inputs

    with Artifact(executable.folder) as artifact:
        golden = artifact.golden()
    kept = None if golden is None else golden[0]
    return sample_inputs(executable.inputs, executable.manifest.dims, kept, sizes, seed)


def _write(file: Path, results: Arrays) -> None:
    """The outputs as ``.npz`` without pickle: text as text, bfloat16 as float32."""
    import numpy as np

    plain: dict[str, Any] = {
        name: v.astype(str) if v.dtype == object else v.astype(np.float32) if v.dtype.kind == "V" else v
        for name, v in results.items()
    }
    with file.open("wb") as stream:
        np.savez(stream, **plain)


def _summary(name: str, value: Array) -> dict[str, Any]:
    """Name, dtype, shape and range; min, mean and max of what has none (text, no elements) are None."""
    numeric = value.dtype.kind in "biuf" and value.size > 0
    spread: Mapping[str, float | None] = (
        {"min": float(value.min()), "mean": float(value.mean(dtype="float64")), "max": float(value.max())}
        if numeric
        else {"min": None, "mean": None, "max": None}
    )
    return {"name": name, "dtype": str(value.dtype), "shape": list(value.shape), **spread}
