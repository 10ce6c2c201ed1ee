"""Row: one sequence that is being written: its tokens, its text so far, and whether it has ended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...compiler.reference import Array
from ..text import Detokenizer
from .options import Policy
from .result import FinishReason, TokenLogprob
from .sampling import Sampler, log_softmax
from .speculative import PromptLookup
from .stopping import StopTexts


class Row:
    """One prompt and what is written after it.

    ``ids``: the tokens that the decoder starts from. ``cached``: how many of them its state already holds.
    ``limit``: new tokens that fit, at most ``policy.max_tokens``. ``number``: its place among the prompts.
    ``prompt_tokens``: how long the prompt is, where ``ids`` only start the decoder.
    """

    __slots__ = (
        "_detokenizer", "_eos", "_policy", "_sampler", "_stops", "cached", "finish", "ids", "limit",
        "logprobs", "lookup", "number", "prompt_tokens", "text", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        ids: Sequence[int],
        policy: Policy,
        *,
        vocabulary: int,
        limit: int,
        detokenizer: Detokenizer | None = None,
        number: int = 0,
        cached: int = 0,
        prompt_tokens: int | None = None,
    ) -> None:
        self.ids, self.limit, self.number, self.cached = list(ids), limit, number, cached
        self.prompt_tokens = len(self.ids) if prompt_tokens is None else prompt_tokens
        self._policy, self._detokenizer, self._eos = policy, detokenizer, frozenset(policy.eos)
        self._stops = StopTexts(policy.stops)
        self._sampler = None if policy.takes_argmax else Sampler(policy, vocabulary, ids, number)
        self.lookup = PromptLookup(ids, policy.speculate) if policy.speculate else None
        self.tokens: list[int] = []
        self.text: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason | None = None

    @property
    def stop(self) -> str | None:
        """The stop text that was found."""
        return self._stops.found

    @property
    def reads_logits(self) -> bool:
        """Whether ``take`` looks at the logits: not where the likeliest token is taken and nothing told."""
        return self._sampler is not None or self._policy.logprobs is not None

    def take(self, logits: Array, likeliest: int) -> int:
        """The next token, chosen after ``logits`` float[vocabulary], whose argmax is ``likeliest``."""
        token = likeliest if self._sampler is None else self._sampler.choose(logits)
        if self._policy.logprobs is not None:
            self.logprobs.append(_logprob(logits, token, self._policy.logprobs))
        if self._sampler is not None:
            self._sampler.push(token)
        if self.lookup is not None:
            self.lookup.push(token)
        self.tokens.append(token)
        self._advance(token)
        return token

    def _advance(self, token: int) -> None:
        """Text of ``token``, and whether the row ends with it."""
        if token in self._eos:
            self.finish = "stop"
        elif self._detokenizer is not None:
            self._write(self._detokenizer.push(token))
        if self.finish is None and len(self.tokens) >= self.limit:
            self.finish = "length"
        if self.finish is not None:
            self.close()

    def _write(self, piece: str) -> None:
        if piece and (piece := self._stops.push(piece)):
            self.text.append(piece)
        if self._stops.found is not None:
            self.finish = "stop"

    def close(self) -> None:
        """Write what was held back: the text ends here."""
        if self._stops.found is None and self._detokenizer is not None:
            self._write(self._detokenizer.flush())
            if rest := self._stops.flush():
                self.text.append(rest)


def _logprob(logits: Array, token: int, count: int) -> TokenLogprob:
    values = log_softmax(logits)
    best = np.argpartition(values, -count)[-count:] if count else np.zeros(0, np.int64)
    best = best[np.argsort(-values[best], kind="stable")]
    return TokenLogprob(token, float(values[token]), tuple((int(i), float(values[i])) for i in best))
