"""What the model's own generation_config.json says: where text ends, and how its authors sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...compiler.errors import ArtifactError

FILE = "generation_config.json"

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Defaults:
    """Fields of generation_config.json that change which tokens come; None where it does not say.

    ``eos``: tokens that end a text. ``forced_bos``, ``forced_eos``: what the first token, and the last one
    that ``max_tokens`` allows, must be. ``suppress``: tokens that never come; ``begin_suppress``: not as the
    first. Beam search and what else it may hold is left aside.
    """

    eos: tuple[int, ...] = ()
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram: int | None = None
    forced_bos: int | None = None
    forced_eos: int | None = None
    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()

    @classmethod
    def of_folder(cls, folder: Path) -> Defaults:
        """Those of an executable folder; nothing said if it has none. Raises: ArtifactError if damaged."""
        path = folder / FILE
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ArtifactError(str(path), f"is larger than {_MAX_BYTES >> 20} MiB")
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, RecursionError) as error:
            raise ArtifactError(str(path), f"can't be read: {error}", "compile the model again") from error
        if not isinstance(data, dict):
            raise ArtifactError(str(path), "is no JSON object", "compile the model again")
        return cls.of(data, str(path))

    @classmethod
    def of(cls, data: Mapping[str, Any], place: str = FILE) -> Defaults:
        """Those of the file's contents. Raises: ArtifactError naming the field that has another type."""
        read = _Fields(data, place)
        eos = read.tokens("eos_token_id")
        bad = tuple(token for token in read.single_words("bad_words_ids") if token not in eos)
        return cls(
            eos=eos,
            max_tokens=read.integer("max_new_tokens"),
            min_tokens=read.integer("min_new_tokens"),
            temperature=read.number("temperature"),
            top_k=read.integer("top_k"),
            top_p=read.number("top_p"),
            min_p=read.number("min_p"),
            repetition_penalty=read.number("repetition_penalty"),
            no_repeat_ngram=read.integer("no_repeat_ngram_size"),
            forced_bos=read.integer("forced_bos_token_id"),
            forced_eos=next(iter(read.tokens("forced_eos_token_id")), None),
            suppress=(*read.tokens("suppress_tokens"), *bad),
            begin_suppress=read.tokens("begin_suppress_tokens"),
        )

    def with_eos(self, eos: tuple[int, ...]) -> Defaults:
        """These, with ``eos`` where the file names none."""
        return self if self.eos else replace(self, eos=eos)


@dataclass(frozen=True, slots=True)
class _Fields:
    data: Mapping[str, Any]
    place: str

    def number(self, name: str) -> float | None:
        value = self.data.get(name)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return value
        raise self._wrong(name, "number")

    def integer(self, name: str) -> int | None:
        value = self.number(name)
        if value is not None and value != int(value):
            raise self._wrong(name, "whole number")
        return None if value is None else int(value)

    def tokens(self, name: str) -> tuple[int, ...]:
        """One token, a list of tokens, or none."""
        value = self.data.get(name)
        items = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
            raise self._wrong(name, "token or list of tokens")
        return tuple(items)

    def single_words(self, name: str) -> tuple[int, ...]:
        """Those of a list of token lists that are one token long."""
        value = self.data.get(name) or []
        if not isinstance(value, list) or not all(isinstance(word, list) for word in value):
            raise self._wrong(name, "list of token lists")
        return tuple(word[0] for word in value if len(word) == 1 and isinstance(word[0], int))

    def _wrong(self, name: str, kind: str) -> ArtifactError:
        return ArtifactError(
            self.place, f"{name} is {self.data[name]!r}, no {kind}", "compile the model again"
        )
