"""Arguments that verbs share, and the option objects that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from .console import Format

if TYPE_CHECKING:
    from ..compiler.options import CompileOptions
    from ..compiler.reference import Arrays

MODEL, PASSES, PARALLEL = "Model", "Passes", "Partitioning"
TIME, OUTPUT = "Proof and timing", "Output"


def _option(
    *flags: str,
    panel: str,
    help: str,  # noqa: A002 - typer's name
    metavar: str | None = None,
    default: str | None = None,
) -> Any:
    """``default`` tells what None stands for."""
    shown = True if default is None else default
    return typer.Option(*flags, help=help, metavar=metavar, rich_help_panel=panel, show_default=shown)


Model: TypeAlias = Annotated[
    str, typer.Argument(metavar="MODEL", help="ONNX file, .pt2, .keras or Hugging Face folder.")
]
Folder: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="Executable folder.")]

Target: TypeAlias = Annotated[
    str,
    _option(
        "--target",
        "--device",
        "--provider",
        panel=MODEL,
        metavar="cpu[:ISA]|cuda[:sm_90]",
        help="Where it runs; ISA for native code: x86-64-v3, armv8.2-a, ...",
    ),
]
Backend: TypeAlias = Annotated[
    str, _option("--backend", panel=MODEL, metavar="auto|ort|native|tvm|ort+tvm", help="Code generator.")
]
Precision: TypeAlias = Annotated[
    str,
    _option(
        "--precision", panel=MODEL, metavar="fp32|fp16|bf16|int8|int4",
        help="Arithmetic of the executable; int8 and int4 are the weights', rounded in blocks.",
    ),
]  # fmt: skip
Sparsity: TypeAlias = Annotated[
    str | None,
    _option(
        "--sparsity", panel=MODEL, metavar="PATTERN:SHARE",
        help="Zeros in the weights, or parts removed: block:0.8, 2:4, 0.5, channels:0.3, heads:0.25; "
        "removal and zeros joined by commas.",
    ),
]  # fmt: skip
Rank: TypeAlias = Annotated[
    float | None,
    _option(
        "--rank", panel=MODEL, metavar="SHARE",
        help="Linear weights as two thin factors, of this share of the size that they have now.",
    ),
]  # fmt: skip
Cache: TypeAlias = Annotated[
    str, _option("--cache", panel=MODEL, metavar="auto|fp32|fp16|int8", help="What the KV cache is kept in.")
]
Tune: TypeAlias = Annotated[
    int,
    _option(
        "--tune",
        panel=MODEL,
        metavar="TRIALS",
        help="Schedules TVM measures for each kernel.",
    ),
]
Calib: TypeAlias = Annotated[
    str | None,
    _option(
        "--calib", panel=MODEL, metavar="FILE",
        help="Inputs to measure activations on: an .npz of arrays, or for language models a text file.",
    ),
]  # fmt: skip
Inputs: TypeAlias = Annotated[
    list[str],
    _option(
        "--input", panel=MODEL, metavar="NAME:SHAPE[:DTYPE]",
        help="Shape of an input, x:1x3x224x224 or ids:batchxseq:int64; or an .npz file of example inputs.",
    ),
]  # fmt: skip
Dims: TypeAlias = Annotated[
    list[str], _option("--dim", panel=MODEL, metavar="NAME=1..64", help="Sizes that a named dimension takes.")
]
Replicas: TypeAlias = Annotated[
    int, _option("--dp", panel=PARALLEL, metavar="N", help="Replicas that share out the rows of a batch.")
]
PipelineStages: TypeAlias = Annotated[
    int, _option("--pp", panel=PARALLEL, metavar="N", help="Pipeline stages, one behind the other.")
]
TensorShards: TypeAlias = Annotated[
    int, _option("--tp", panel=PARALLEL, metavar="N", help="Tensor shards that share every layer.")
]
Memory: TypeAlias = Annotated[
    str | None,
    _option("--memory", panel=PARALLEL, metavar="8GiB", help="Weights that a device holds at most."),
]
Level: TypeAlias = Annotated[
    int,
    typer.Option(
        "-O", min=0, max=3, rich_help_panel=PASSES, metavar="0..3",
        help="0 import only, 1 cleanup, 2 fusion and lowering, 3 also without a time budget for timing.",
    ),
]  # fmt: skip
Enable: TypeAlias = Annotated[
    list[str],
    _option("--enable", panel=PASSES, metavar="PASS[{k=v}]", help="Turn a pass on, or set its options."),
]
Disable: TypeAlias = Annotated[
    list[str], _option("--disable", panel=PASSES, metavar="PASS", help="Leave a pass out.")
]
WhyNot: TypeAlias = Annotated[
    list[str],
    _option("--why-not", panel=PASSES, metavar="PASS", help="List the nodes a pass declined, and why."),
]
DryRun: TypeAlias = Annotated[
    bool, _option("--dry-run", panel=PASSES, help="Say what every pass would do; build and write nothing.")
]
SaveIR: TypeAlias = Annotated[
    Path | None,
    _option("--save-ir", panel=PASSES, metavar="DIR", help="Write the program as text after each pass."),
]
Budget: TypeAlias = Annotated[
    float | None,
    _option(
        "--budget", panel=TIME, metavar="ERROR",
        help="Greatest error against the source: scaled error; for language models mean KL of their tokens.",
    ),
]  # fmt: skip
Goal: TypeAlias = Annotated[
    str,
    _option("--goal", panel=TIME, metavar="speed|size", help="What is made small within the budget."),
]
Threads: TypeAlias = Annotated[
    int | None, _option("--threads", "-t", panel=TIME, help="Threads for timing.", default="all cores")
]
Timing: TypeAlias = Annotated[
    float,
    _option(
        "--timing", panel=TIME, metavar="SECONDS", help="Time for the check that no pass made it slower."
    ),
]
Strict: TypeAlias = Annotated[
    bool,
    _option(
        "--strict/--no-strict", panel=TIME, help="Fail if a node would run on another device than the target."
    ),
]
Verify: TypeAlias = Annotated[
    bool, _option("--verify/--no-verify", panel=TIME, help="Compare with the source framework.")
]
KeepSource: TypeAlias = Annotated[
    bool | None,
    _option(
        "--keep-source/--no-keep-source",
        panel=OUTPUT,
        help="Keep the plain model to bench against; by default unless weights get smaller.",
    ),
]
Numerics: TypeAlias = Annotated[
    bool,
    _option(
        "--numerics/--no-numerics", panel=PASSES, help="Evaluate after every pass; note its error (slow)."
    ),
]
Seed: TypeAlias = Annotated[int, _option("--seed", panel=TIME, help="Seed of made-up inputs.")]
Output: TypeAlias = Annotated[
    Path | None,
    _option(
        "-o", "--output", panel=OUTPUT, metavar="DIR", help="Executable folder.", default="MODEL.miaotui"
    ),
]
FormatOption: TypeAlias = Annotated[
    Format, _option("--format", panel=OUTPUT, help="Table or JSON on stdout.")
]
Quiet: TypeAlias = Annotated[bool, _option("--quiet", "-q", panel=OUTPUT, help="No progress on stderr.")]
Verbose: TypeAlias = Annotated[
    bool,
    _option("--verbose", "-v", panel=OUTPUT, help="Everything: all operators, and tracebacks of errors."),
]
LogFile: TypeAlias = Annotated[
    Path | None,
    _option("--log-file", panel=OUTPUT, metavar="FILE", help="Append stages and errors to a file."),
]


def compile_options(
    *,
    target: str,
    backend: str,
    precision: str,
    opt: int,
    enable: Sequence[str],
    disable: Sequence[str],
    inputs: Sequence[str],
    dims: Sequence[str],
    sparsity: str | None,
    rank: float | None,
    cache: str,
    tune: int,
    calib: str | None,
    budget: float | None,
    goal: str,
    strict: bool,
    threads: int | None,
    timing: float,
    verify: bool,
    keep_source: bool | None,
    numerics: bool,
    seed: int,
    dp: int,
    pp: int,
    tp: int,
    memory: str | None,
) -> CompileOptions:
    """The options object; ``.npz`` files among ``inputs`` are for ``example_arrays``. Raises: OptionError."""
    from ..compiler.options import CompileOptions, InputSpec, Target, parse_bytes, parse_dim_range
    from ..compiler.parallel.mesh import Mesh

    return CompileOptions(
        target=Target.parse(target),
        backend=backend,  # type: ignore[arg-type]  # checked by CompileOptions itself
        precision=precision,  # type: ignore[arg-type]
        opt=opt,
        enable=tuple(enable),
        disable=tuple(disable),
        inputs=tuple(InputSpec.parse(text) for text in inputs if not text.endswith(".npz")),
        dims=tuple(parse_dim_range(text) for text in dims),
        sparsity=sparsity,
        rank=rank,
        cache=cache,  # type: ignore[arg-type]
        tune=tune,
        calib=calib,
        budget=budget,
        goal=goal,  # type: ignore[arg-type]
        strict=strict,
        threads=threads,
        timing=timing,
        verify=verify,
        keep_source=keep_source,
        numerics=numerics,
        seed=seed,
        mesh=Mesh(dp, pp, tp),
        memory=None if memory is None else parse_bytes(memory),
    )


def example_arrays(inputs: Sequence[str]) -> Arrays | None:
    """Arrays of the ``.npz`` files among ``--input``, by name; None if there is none."""
    files = [Path(text) for text in inputs if text.endswith(".npz")]
    return {name: array for file in files for name, array in read_npz(file).items()} or None


def read_npz(path: Path) -> Arrays:
    """Arrays of an ``.npz`` file by name, without pickle. Raises: InputError if it is none."""
    import zipfile

    import numpy as np

    from ..compiler.errors import InputError

    fix = "write it with numpy.savez(path, name=array, …)"
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise InputError(str(path), "is a single array, not an .npz of named arrays", fix)
        with arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise InputError(str(path), "does not exist", fix) from None
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(str(path), f"is no .npz file of plain arrays ({error})", fix) from error


def sizes(text: str) -> dict[str, int]:
    """``batch=8,seq=128`` as a dictionary. Raises: OptionError."""
    from ..compiler.errors import OptionError

    found = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, size = part.partition("=")
        if not size.isdigit() or not name:
            raise OptionError("--size", f"{part!r} does not parse", "write --size batch=8,seq=128")
        found[name] = int(size)
    return found
