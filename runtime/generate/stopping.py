"""Stop texts found in a stream of pieces, also across pieces; no piece that may begin one gets out early."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes text through until one of ``stops`` occurs in it.

    >>> text = StopTexts(["User:"])
    >>> [text.push(piece) for piece in ("Fine. ", "Us", "ed. ", "Use", "r: so")], text.found
    (['Fine. ', '', 'Used. ', '', ''], 'User:')
    """

    __slots__ = ("_held", "_stops", "found")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The stop text that occurred first."""

    def push(self, piece: str) -> str:
        """As much text as is certainly before any stop text."""
        if not self._stops:
            return piece
        if self.found is not None:
            return ""
        text = self._held + piece
        hits = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            # the first to occur; of two that begin together the longer
            at, self.found = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
            self._held = ""
            return text[:at]
        held = max(self._beginning(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _beginning(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that ``stop`` begins with."""
        longest = min(len(stop) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
