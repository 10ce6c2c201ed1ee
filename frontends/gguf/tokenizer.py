"""The tokenizer, chat template and stop tokens of a GGUF file, as the files of a Hugging Face folder."""

from __future__ import annotations

import json
from typing import Any

from ...compiler.errors import ModelError, UnsupportedError, require
from ..huggingface.folder import GENERATION
from ..huggingface.tokenizer import CONFIG, DEFINITION
from .header import AGAIN, Header

TEMPLATE = "tokenizer/chat_template.jinja"

_KEYS = {
    "model": "tokenizer_type", "pre": "pre_tokenizer_type", "tokens": "tokens", "scores": "scores",
    "token_type": "token_type", "merges": "merges", "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id", "unknown_token_id": "unk_token_id", "padding_token_id": "pad_token_id",
    "add_space_prefix": "add_prefix_space",
}  # fmt: skip
_NAMED = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}  # fmt: skip
_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")
_LISTS = {"tokens": str, "merges": str, "scores": (int, float), "token_type": int}

_LIKE_GPT2 = (
    "default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "stablelm2", "roberta-bpe", "falcon",
    "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone",
)  # fmt: skip
"""Ways to split text that transformers reads as GPT-2's.

The last six also cut digits apart; their vocabularies hold no merges over digits, so only digits of other
scripts could come out otherwise.
"""


def tokenizer_assets(header: Header, architecture: str, vocabulary: int) -> dict[str, bytes]:
    """tokenizer.json and its companions by their name in the executable folder; empty if the file has none.

    ``vocabulary``: rows of the embedding. Raises: ModelError for a tokenizer that is damaged or does not fit
    the model, UnsupportedError for a kind that has no translation.
    """
    described = _described(header)
    if "tokens" not in described:
        return {}
    _check(header, described, vocabulary)
    place = f"{header.path.name}: tokenizer"
    transformers = require("transformers", extra="huggingface")
    from transformers.integrations.gguf import gguf_tokenizer_mapping as mapping

    kind, pre = described.get("tokenizer_type"), described.get("pre_tokenizer_type", "default")
    if kind not in mapping.GGUF_TOKENIZER_TYPES:
        fix = f"give one of {', '.join(mapping.GGUF_TOKENIZER_TYPES)}, or the Hugging Face folder"
        raise UnsupportedError(place, f"kind {kind!r} has no translation", fix)
    splits = (*mapping.GGUF_PRE_TOKENIZER_SPLITS, *_LIKE_GPT2)
    if kind == "gpt2" and pre not in splits:
        fact = f"splits text as {pre!r}, which has no translation"
        raise UnsupportedError(place, fact, "give the Hugging Face folder")
    named = {
        name: described["tokens"][i]
        for name, key in _NAMED.items()
        if type(i := header.metadata.get(f"tokenizer.ggml.{key}")) is int
    }
    try:
        backend, _ = mapping.convert_gguf_tokenizer(architecture, described)
        made = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, **_flags(header, kind), **{**dict.fromkeys(_NAMED), **named}
        )
    except Exception as error:  # transformers and tokenizers raise errors of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(place, f"can't be built: {reason}", AGAIN) from error
    return _files(header, made, named)


def stop_tokens(header: Header) -> dict[str, Any]:
    """generation_config.json's fields: tokens that begin, end and pad a text."""
    read = header.metadata.get
    ends = [i for key in _STOPS if type(i := read(f"tokenizer.ggml.{key}")) is int]
    ends = list(dict.fromkeys(ends))
    fields = {
        "bos_token_id": read("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": read("tokenizer.ggml.padding_token_id"),
    }
    return {key: value for key, value in fields.items() if value is not None}


def _described(header: Header) -> dict[str, Any]:
    """The metadata under transformers' names. Raises: ModelError if a list holds something else."""
    found: dict[str, Any] = {}
    for key, name in _KEYS.items():
        value = header.metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            continue
        wanted = _LISTS.get(key)
        fits = not isinstance(value, list) if wanted is None else _is_list_of(value, wanted)
        if not fits:
            raise ModelError(f"{header.path.name}: 'tokenizer.ggml.{key}'", "is of another type", AGAIN)
        found[name] = value
    return found


def _is_list_of(value: object, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _check(header: Header, described: dict[str, Any], vocabulary: int) -> None:
    count, place = len(described["tokens"]), f"{header.path.name}: tokenizer"
    if not 0 < count <= vocabulary:
        raise ModelError(place, f"has {count:,} tokens, the model's embedding {vocabulary:,} rows", AGAIN)
    for name in ("scores", "token_type"):
        if name in described and len(described[name]) != count:
            raise ModelError(place, f"has {count:,} tokens, but {len(described[name]):,} {name}", AGAIN)
    for key in (*_NAMED.values(), *_STOPS):
        found = header.metadata.get(f"tokenizer.ggml.{key}")
        if found is not None and (type(found) is not int or not 0 <= found < count):
            raise ModelError(place, f"has {key} {str(found)[:40]}, of {count:,} tokens", AGAIN)
    if any(merge.count(" ") != 1 for merge in described.get("merges", ())):
        raise ModelError(place, "has a merge that is no pair", AGAIN)


def _flags(header: Header, kind: str | None) -> dict[str, bool]:
    """Whether texts begin and end with special tokens; a sentencepiece file that says nothing means begin."""
    found = {"add_bos_token": True} if kind == "llama" else {}
    for name in ("add_bos_token", "add_eos_token"):
        value = header.metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(value, bool):
            found[name] = value
    return found


def _files(header: Header, made: Any, named: dict[str, str]) -> dict[str, bytes]:
    backend = made.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    files = {DEFINITION: backend.to_str().encode()}
    settings = {**named, "add_bos_token": made.add_bos_token, "add_eos_token": made.add_eos_token}
    files[CONFIG] = json.dumps(settings, ensure_ascii=False, indent=1).encode()
    template = header.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        files[TEMPLATE] = template.encode()
    files[GENERATION] = json.dumps(stop_tokens(header), indent=2).encode() + b"\n"
    return files
