"""Prompt-lookup drafts: what followed the last tokens when they occurred before, as a guess.

Source: prompt lookup decoding (A. Saxena, 2023), as in transformers' PromptLookupCandidateGenerator.
"""

from __future__ import annotations

from collections.abc import Iterable

_SIZES = (4, 3, 2)
"""Tokens that must agree, the longest agreement first: one alone says too little."""


class PromptLookup:
    """Drafts of at most ``longest`` tokens from an index that each new token adds to; no scan.

    The length doubles while whole drafts are right and halves when none of it is, so that text without
    repetition costs little.

    >>> lookup = PromptLookup([1, 2, 3, 4, 9, 1, 2], longest=2)
    >>> lookup.draft()
    [3, 4]
    """

    __slots__ = ("_follows", "_length", "_longest", "_tokens")

    def __init__(self, tokens: Iterable[int], longest: int) -> None:
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}
        self._longest = longest
        self._length = min(longest, max(2, longest // 2))
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """Take ``token`` as the next of the text."""
        end = len(self._tokens)
        for size in _SIZES:
            if end >= size:
                self._follows[tuple(self._tokens[end - size :])] = end
        self._tokens.append(token)

    def draft(self) -> list[int]:
        """Tokens that may follow; empty if the last ones are new."""
        for size in _SIZES:
            place = self._follows.get(tuple(self._tokens[-size:])) if len(self._tokens) >= size else None
            if place is not None:
                return self._tokens[place : place + self._length]
        return []

    def learn(self, drafted: int, accepted: int) -> None:
        """Adapt the length of drafts to how much of the last one was right."""
        if accepted == drafted:
            self._length = min(self._longest, 2 * self._length)
        elif accepted == 0:
            self._length = max(1, self._length // 2)
