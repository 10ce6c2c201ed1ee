"""``miaotui embed DIR TEXT…``: sentence embeddings as JSON or an .npy file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import arguments as a
from . import generation as g
from .console import print_json

if TYPE_CHECKING:
    from ..compiler.reference import Array


class Written(StrEnum):
    """How embeddings are written."""

    json = "json"
    npy = "npy"


Texts = Annotated[list[str] | None, typer.Argument(metavar="[TEXT…]", help="Texts to embed.")]
File = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", help="One text a line; - is stdin.")
]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", metavar="NAME", help="What the model wants in front, such as query or passage."),
]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="Texts that run together.")]
OutputFile = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where they go.", show_default="stdout")
]
WrittenAs = Annotated[
    Written,
    typer.Option("--format", help="JSON, or float32 as numpy stores it.", rich_help_panel=a.OUTPUT),
]


def embed(
    folder: a.Folder,
    texts: Texts = None,
    file: File = None,
    prompt: Prompt = None,
    batch_size: Batch = 32,
    output: OutputFile = None,
    output_format: WrittenAs = Written.json,
    threads: g.Threads = None,
    verbose: a.Verbose = False,
) -> None:
    """Embed texts with a model of sentence-transformers."""
    from .. import driver

    given = _given(texts or [], file)
    with driver.open(folder) as executable:
        vectors = executable.embed(given, batch_size=batch_size, prompt=prompt, threads=threads)
    if output_format is Written.npy:
        _write(vectors, output)
    elif output is None:
        print_json(_described(given, vectors))
    else:
        import json

        output.write_text(json.dumps(_described(given, vectors), ensure_ascii=False) + "\n", "utf-8")


def _given(texts: list[str], file: Path | None) -> list[str]:
    from ..compiler.errors import OptionError

    if file is None and texts:
        return texts
    if file is None or texts:
        fact = "can't be given together with --file" if file else "is missing"
        raise OptionError("TEXT", fact, "give texts, or --file with one a line")
    return [line for line in g.read_text(str(file)).splitlines() if line.strip()]


def _described(texts: list[str], vectors: Array) -> dict[str, object]:
    rows = zip(texts, vectors, strict=True)
    return {"schema": 1, "embeddings": [{"text": t, "embedding": [float(x) for x in v]} for t, v in rows]}


def _write(vectors: Array, output: Path | None) -> None:
    import io
    import sys

    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    if output is None:
        sys.stdout.buffer.write(buffer.getvalue())
    else:
        output.write_bytes(buffer.getvalue())
