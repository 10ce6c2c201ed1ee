"""Prompts as tokens: text, messages or ids, one or several; checked against vocabulary and context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compiler.errors import InputError, Problem, ToolError
from ...compiler.program import Decoding
from ..text import Tokenizer

GIVE = "give text, a list of tokens, messages, or a list of one of these"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Tokens of every prompt; ``single``: the caller gave one, not a list of them."""

    ids: tuple[tuple[int, ...], ...]
    single: bool

    @classmethod
    def of(cls, given: object, tokenizer: Tokenizer | None) -> Prompts:
        """Tokens of whatever was given. Raises: InputError if it is no prompt."""
        single = not _is_several(given)
        items = [given] if single else list(given)  # type: ignore[call-overload]
        return cls(tuple(tuple(_tokens(item, tokenizer)) for item in items), single)

    def check(self, decoding: Decoding, room: int = 1) -> None:
        """Raises: InputError listing every prompt that is empty, of tokens the model lacks, or too long.

        ``room``: tokens that must fit in the context behind it.
        """
        if problems := list(self._problems(decoding, room)):
            raise InputError.of(problems)

    def _problems(self, decoding: Decoding, room: int) -> Iterator[Problem]:
        for number, ids in enumerate(self.ids):
            place = "prompt" if self.single else f"prompt {number + 1}"
            if not ids:
                yield Problem(place, "is empty", "give at least one token")
            wrong = [token for token in ids if not 0 <= token < decoding.vocabulary]
            if wrong:
                fact = f"has token {wrong[0]}, the model's vocabulary ends at {decoding.vocabulary - 1}"
                yield Problem(place, fact, "use the tokenizer that belongs to the model")
            context = decoding.context
            if decoding.encoder is None and context is not None and len(ids) + room > context:
                fact = f"has {len(ids)} tokens, the model's context holds {context}"
                fact += " together with the answer" if room else ""
                yield Problem(place, fact, f"shorten it by {len(ids) + room - context} tokens or more")


def _is_several(given: object) -> bool:
    if isinstance(given, (str, bytes, Mapping)):
        return False
    if isinstance(given, np.ndarray):
        return given.ndim > 1
    if not isinstance(given, Sequence):
        return False
    first = given[0] if len(given) else None
    if isinstance(first, (str, np.ndarray)):
        return True
    return isinstance(first, Sequence)


def _tokens(given: Any, tokenizer: Tokenizer | None) -> list[int]:
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "iu":
        return [int(token) for token in given]
    if isinstance(given, str):
        return _needed(tokenizer).encode(given)
    if _is_list(given) and given and all(isinstance(item, Mapping) for item in given):
        # the template writes the special tokens itself
        return _needed(tokenizer).encode(_needed(tokenizer).chat(given), special=False)
    if _is_list(given) and all(isinstance(item, (int, np.integer)) for item in given):
        return [int(token) for token in given]
    raise InputError("prompt", f"is {type(given).__name__}", GIVE)


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, (str, bytes, bytearray))


def _needed(tokenizer: Tokenizer | None) -> Tokenizer:
    if tokenizer is None:
        fix = "give a list of tokens, or compile the model from a folder that has tokenizer.json"
        raise ToolError("tokenizer", "is missing: the executable was compiled without one", fix)
    return tokenizer
