"""What ``generate`` and ``chat`` share: options, opening a model, text in and out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ..compiler.errors import InputError
from .arguments import OUTPUT
from .console import stderr

if TYPE_CHECKING:
    from ..runtime.executable import Executable
    from ..runtime.generate import Generation, Stream

SAMPLING, LENGTH = "Sampling", "Length and speed"

Model: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="DIR", help="Executable folder; or a model, compiled into a temporary one first."),
]
MaxTokens: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "-n", "--max-tokens", min=1, help="New tokens at most.", rich_help_panel=LENGTH,
        show_default="the model's, or 128",
    ),
]  # fmt: skip
Temperature: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--temperature", "--temp", help="Above 0 tokens are drawn, the flatter the higher.",
        rich_help_panel=SAMPLING, show_default="0: always the likeliest",
    ),
]  # fmt: skip
TopK: TypeAlias = Annotated[
    int | None, typer.Option("--top-k", help="Draw from the K likeliest.", rich_help_panel=SAMPLING)
]
TopP: TypeAlias = Annotated[
    float | None,
    typer.Option("--top-p", help="Draw from the likeliest that sum to P.", rich_help_panel=SAMPLING),
]
MinP: TypeAlias = Annotated[
    float | None,
    typer.Option("--min-p", help="Draw from those P times as likely as the first.", rich_help_panel=SAMPLING),
]
Penalty: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", help="Above 1: less of what was said.", rich_help_panel=SAMPLING,
        show_default="the model's, or 1",
    ),
]  # fmt: skip
Seed: TypeAlias = Annotated[
    int | None, typer.Option("--seed", help="Makes draws repeatable.", rich_help_panel=SAMPLING)
]
Stop: TypeAlias = Annotated[
    list[str],
    typer.Option("--stop", metavar="TEXT", help="End before this text; repeatable.", rich_help_panel=LENGTH),
]
IgnoreEos: TypeAlias = Annotated[
    bool, typer.Option("--ignore-eos", help="Write on behind the model's end.", rich_help_panel=LENGTH)
]
Speculate: TypeAlias = Annotated[
    int,
    typer.Option(
        "--speculate", metavar="N", min=0, max=64, rich_help_panel=LENGTH,
        help="Draft N tokens from what was said before: the same text, sooner where it repeats.",
    ),
]  # fmt: skip
Threads: TypeAlias = Annotated[
    int | None,
    typer.Option("-t", "--threads", min=1, help="Threads.", rich_help_panel=LENGTH, show_default="all cores"),
]
Stats: TypeAlias = Annotated[
    bool,
    typer.Option("--stats", help="TTFT, tokens per second and more on stderr.", rich_help_panel=OUTPUT),
]


def given(**options: Any) -> dict[str, Any]:
    """Options that were given, for ``GenerationOptions``."""
    return {name: value for name, value in options.items() if value is not None and value != []}


@contextmanager
def opened(
    model: str, threads: int | None, *, quiet: bool, executor: str = "threads"
) -> Iterator[Executable]:
    """The executable folder ``model``, or one that is compiled from it and removed afterwards."""
    from .. import driver
    from ..compiler.artifact import is_executable
    from .progress import watched

    path = Path(model)
    if is_executable(path) or not path.exists():
        with driver.open(path, executor=executor) as executable:
            yield executable
        return
    from ..compiler.options import CompileOptions

    with watched(quiet=quiet) as progress:
        progress.note(f"compiling {path.name} for this call; `miaotui compile {model}` keeps the result")
        compiled = driver.compile(model, CompileOptions(threads=threads), progress=progress)
    with compiled as executable:
        yield executable


def decoded(data: bytes, place: str) -> str:
    """UTF-8 ``data`` as text. Raises: InputError naming the byte that is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fact = f"is no UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}"
        raise InputError(place, fact, "convert it, for example with iconv") from None


def read_text(place: str) -> str:
    """Text of a file, or of stdin for ``-``. Raises: InputError if it is no UTF-8."""
    if place == "-":
        return decoded(sys.stdin.buffer.read(), "stdin")
    return decoded(Path(place).read_bytes(), place)


def show(stream: Stream) -> bool:
    """Write the pieces on stdout as they come; False if Ctrl-C ended them. What was written stays."""
    clean: Callable[[str], str] = _printable if sys.stdout.isatty() else str
    shown, finished = 0, True
    try:
        with stream:
            for piece in stream:
                sys.stdout.write(clean(piece))
                sys.stdout.flush()
                shown += len(piece)
    except KeyboardInterrupt:
        finished = False
    sys.stdout.write(clean(stream.result.text[shown:]) + "\n")
    sys.stdout.flush()
    return finished


def tell(generation: Generation) -> None:
    """Timings on stderr."""
    stderr().print(f"[{generation.timings}; {generation.finish_reason}]", style="dim", soft_wrap=True)


_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "␡"}


def _printable(text: str) -> str:
    """Control characters as pictures: a model must not move the cursor or rename the window."""
    return text.translate(_CONTROLS)
