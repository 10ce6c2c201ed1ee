"""A tokenizer's files in an executable or model folder, read with their sizes bounded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...compiler.errors import ModelError

AGAIN = "compile the model again, from a folder with its tokenizer"

LIMITS = {"tokenizer.json": 512 << 20, "chat_template.jinja": 1 << 20}
"""Greatest size in bytes of a file; 16 MiB for all others."""

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Names under which a configuration says which token is which."""


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What a folder says about its tokenizer.

    ``definition``: tokenizer.json. ``special``: token by name (``eos_token``). ``eos``: ids that end a
    generation, where generation_config.json says so. ``templates``: chat templates by name.
    """

    place: str
    definition: str
    special: dict[str, str] = field(default_factory=dict)
    eos: tuple[int, ...] = ()
    templates: dict[str, str] = field(default_factory=dict)


def read_files(folder: Path) -> TokenizerFiles:
    """The tokenizer's files in ``folder``, or in its ``tokenizer/`` if it has one.

    Raises: ModelError for missing, oversized or malformed files.
    """
    inner = folder / "tokenizer"
    place = inner if inner.is_dir() else folder
    definition = _text(place / "tokenizer.json")
    if definition is None:
        raise ModelError(str(folder), "has no tokenizer (tokenizer.json)", AGAIN)
    config = _object(place / "tokenizer_config.json")
    special = {name: token for name in SPECIAL if (token := _content(config.get(name)))}
    listed = _object(place / "special_tokens_map.json")
    special = {name: token for name in SPECIAL if (token := _content(listed.get(name)))} | special
    generation = _object(folder / "generation_config.json")
    templates = _templates(config.get("chat_template"))
    templates |= _templates(_object(place / "chat_template.json").get("chat_template"))
    if (template := _text(place / "chat_template.jinja")) is not None:
        templates["default"] = template
    return TokenizerFiles(str(folder), definition, special, _ids(generation.get("eos_token_id")), templates)


def _text(path: Path) -> str | None:
    limit = LIMITS.get(path.name, 16 << 20)
    try:
        if path.stat().st_size > limit:
            raise ModelError(str(path), f"is larger than {limit >> 20} MiB", "this is no tokenizer's file")
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ModelError(str(path), f"is no UTF-8 text (byte {error.start})", AGAIN) from None
    except OSError as error:
        raise ModelError(str(path), f"can't be read: {error.strerror}") from error


def _object(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        found = {} if text is None else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(str(path), f"is no JSON: {error}", AGAIN) from None
    if not isinstance(found, dict):
        raise ModelError(str(path), "is no JSON object", AGAIN)
    return found


def _content(token: Any) -> str | None:
    """A token given as text, or as the object that transformers writes for an added token."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _ids(given: Any) -> tuple[int, ...]:
    listed = given if isinstance(given, list) else [given]
    return tuple(each for each in listed if isinstance(each, int) and not isinstance(each, bool))


def _templates(given: Any) -> dict[str, str]:
    """Templates by name: given as one text, or as a list of ``{"name", "template"}``."""
    if isinstance(given, str):
        return {"default": given}
    listed = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
    pairs = [(each.get("name"), each.get("template")) for each in listed]
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
