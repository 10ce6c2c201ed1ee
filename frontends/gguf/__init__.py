"""Frontend for GGUF files: quantized weights as they are, tokenizer and chat template from the file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from ...compiler.errors import UnsupportedError, require
from ...compiler.options import CompileOptions
from ..base import Import
from ..huggingface.decoder import describe_decoder
from ..huggingface.folder import GENERATION
from ..huggingface.module import import_transformers
from ..huggingface.streamed import is_large, stream
from .header import Header, read_header
from .module import describe
from .tokenizer import stop_tokens, tokenizer_assets


def import_gguf(path: Path, options: CompileOptions, inputs: object = None) -> Import:
    """Import the language model in the GGUF file ``path``: ids → logits.

    Quantized blocks become blocked weights, the same numbers; a tokenizer that has no translation is left out
    with a note. Raises: ModelError for a damaged or contradictory file, UnsupportedError for what has no
    translation, and as ``import_module``.
    """
    header = read_header(path)
    described = describe(header)
    assets: dict[str, Path | bytes] = {GENERATION: json.dumps(stop_tokens(header), indent=2).encode() + b"\n"}
    note = "the file has no tokenizer"
    try:
        found = tokenizer_assets(header, described.name, described.vocabulary)
        note = "" if found else note
        assets |= found
    except UnsupportedError as error:
        note = f"no tokenizer: {error.problems[0].fact}"
    empty = described.skeleton()
    weights = {name: described.sources[name].weight() for name in empty.sources.values()}
    imported = import_transformers(
        empty.module,
        options,
        inputs,
        empty.weights(weights),
        described.module,
        (lambda: stream(empty, described.reader())) if is_large(empty) else None,
    )
    program = imported.program
    program.assets = assets
    describe_decoder(program, empty.module)
    version = require("transformers", extra="huggingface").__version__
    program.source |= {
        "framework": f"transformers {version}", "path": str(path), "model": _name(header),
        "tensors": _tensor_types(header),
    }  # fmt: skip
    if note:
        program.source["note"] = "; ".join(filter(None, (program.source.get("note"), note)))
    return imported


def _name(header: Header) -> str:
    name = header.metadata.get("general.name")
    return name if isinstance(name, str) and name.strip() else header.path.stem


def _tensor_types(header: Header) -> str:
    counts = Counter(info.block.name for info in header.tensors.values())
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


__all__ = ["import_gguf"]
