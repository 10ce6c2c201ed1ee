"""Generation: the text that was written, its tokens, why it ended and how long it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ...compiler.jsonable import to_json
from .timings import Timings

FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]
"""``stop``: the model's end token or a stop text. ``length``: ``max_tokens``, or the context is full.
``cancelled``: the caller took no more."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a written token, natural logarithm, from the bare logits.

    ``top``: (token, log-probability) of the likeliest ones, the likeliest first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """What was written after one prompt. ``str()`` of it is the text.

    ``text``: without end token and stop text; empty if the executable has no tokenizer. ``ids``: every new
    token, the end token too. ``stop``: the stop text that was found. ``logprobs``: one a token, if asked for.
    ``timings``: of the whole call; rows of a batch share them.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    timings: Timings
    prompt_tokens: int
    stop: str | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``json.dumps``, rates included."""
        data: dict[str, Any] = to_json(self)
        for name in ("prefill_rate", "decode_rate", "acceptance"):
            data["timings"][name] = getattr(self.timings, name)
        return data
