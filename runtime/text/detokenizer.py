"""Detokenizer: token ids into text as they come, never a part of a character."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from .streams import Stream, streams_of


class Detokenizer:
    """The text of a growing token sequence: what ``push`` and ``flush`` return, joined, is ``decode(all)``.

    A token costs the same however long the text is. ``tokenizer``: of the tokenizers library.
    """

    __slots__ = ("_skipped", "_streams", "_token")

    def __init__(self, tokenizer: Any, skipped: frozenset[int] = frozenset()) -> None:
        self._token: Callable[[int], str | None] = tokenizer.id_to_token
        self._skipped = skipped
        decoder = tokenizer.decoder
        state = None if decoder is None else json.loads(decoder.__getstate__())
        decode = " ".join if decoder is None else decoder.decode
        self._streams: Sequence[Stream] = streams_of(state, decode)

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` makes final; empty for a skipped or unknown token."""
        token = None if token_id in self._skipped else self._token(token_id)
        return "" if token is None else _through(self._streams, [token])

    def flush(self) -> str:
        """The text that was held back; the sequence ends here."""
        return "".join(
            _through(self._streams[place + 1 :], stream.end()) for place, stream in enumerate(self._streams)
        )


def _through(streams: Sequence[Stream], pieces: list[str]) -> str:
    for stream in streams:
        pieces = [out for piece in pieces for out in stream.push(piece)]
    return "".join(pieces)
