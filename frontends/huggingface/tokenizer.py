"""A folder's tokenizer as one tokenizer.json: transformers' fast tokenizer, written out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...compiler.errors import require
from .skeleton import quiet_transformers

DEFINITION, CONFIG = "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"

SOURCES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
"""Files of a folder that a tokenizer can be made from."""

_UNSET = 1_000_000
"""A greater model_max_length is transformers' way to say none."""


def tokenizer_assets(
    path: Path, assets: Mapping[str, Path | bytes], lowercase: bool = False
) -> dict[str, Path | bytes]:
    """``assets`` with tokenizer.json as transformers uses it and its special tokens by name.

    ``lowercase``: texts are lowercased before all else, as sentence-transformers can ask for.

    transformers changes what it reads: special tokens, what surrounds a text, older formats converted. A
    folder that it can't read a tokenizer from keeps its files as they are.
    """
    found = dict(assets)
    tokenizer = load_tokenizer(path) if any((path / name).is_file() for name in SOURCES) else None
    if tokenizer is None:
        return found
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if lowercase:
        from tokenizers.normalizers import Lowercase, Sequence

        backend.normalizer = Sequence([Lowercase(), *([backend.normalizer] if backend.normalizer else [])])
    found[DEFINITION] = backend.to_str().encode()
    config = dict(_config(path), **tokenizer.special_tokens_map)
    if 0 < tokenizer.model_max_length < _UNSET:
        config["model_max_length"] = tokenizer.model_max_length
    found[CONFIG] = json.dumps(config, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")
    return found


def load_tokenizer(path: Path) -> Any:
    """transformers' fast tokenizer of the folder at ``path``; None if it has none that can be read."""
    transformers = require("transformers", extra="huggingface")
    try:
        with quiet_transformers(transformers):
            made = transformers.AutoTokenizer.from_pretrained(
                str(path), local_files_only=True, trust_remote_code=False, use_fast=True
            )
    except Exception:  # a missing or malformed file raises whatever its reader raises
        return None
    return made if getattr(made, "backend_tokenizer", None) is not None else None


def _config(path: Path) -> dict[str, Any]:
    try:
        read = json.loads((path / "tokenizer_config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}
