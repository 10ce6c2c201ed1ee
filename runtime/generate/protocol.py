"""The decoder protocol: rows of tokens that are continued together, wherever their state lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...compiler.reference import Array


class TokenDecoder(Protocol):
    """What writing loops drive: see ``Decoder``, its meaning in every detail, and ``DeviceDecoder``."""

    lengths: Array
    alive: Array

    @property
    def rows(self) -> int:
        """Sequences that run together."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens of each row that the buffers have room for now."""
        ...

    @property
    def tokens(self) -> Array:
        """int64[rows, 1]: what the next ``step`` reads."""
        ...

    @property
    def logits(self) -> Array:
        """float[rows, vocabulary]: of each row's last token; to look at them may cost a copy."""
        ...

    def prefill(self, row: int, ids: Sequence[int], chunk: int = ...) -> None:
        """Append ``ids`` to ``row``."""
        ...

    def prefill_together(self, prompts: Sequence[Sequence[int]]) -> None:
        """``prefill`` of all rows, all empty."""
        ...

    def step(self) -> None:
        """Append each row's token of ``tokens`` to it."""
        ...

    def extend(self, ids: Sequence[int]) -> tuple[Array, Array]:
        """Run ``ids`` behind the only row; logits and greedy choice after each."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Only ``rows`` from now on, in that order."""
        ...

    def reserve(self, tokens: int) -> None:
        """Room for ``tokens`` tokens in every row."""
        ...
