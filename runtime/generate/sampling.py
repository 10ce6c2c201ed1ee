"""Sampling: from a row's logits to its next token; every step a function over the vocabulary.

Meaning and order are those of transformers' logits processors and warpers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...compiler.errors import CompileError
from ...compiler.reference import Array
from .options import Policy


def penalized(scores: Array, seen: Array, penalty: float) -> Array:
    """``scores`` float[vocabulary] with those of the tokens ``seen`` divided by ``penalty``, or multiplied
    where they are negative. Source: CTRL, arXiv 1909.05858.
    """
    made = scores.copy()
    chosen = scores[seen]
    made[seen] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
    return made


def top_k_kept(scores: Array, k: int) -> Array:
    """bool: the ``k`` greatest, and all equal to the least of these."""
    if k >= scores.size:
        return np.ones(scores.size, np.bool_)
    return np.asarray(scores >= np.partition(scores, -k)[-k])


def top_p_kept(scores: Array, p: float) -> Array:
    """bool: the fewest greatest whose probabilities sum to ``p`` or more, at least one."""
    probabilities = softmax(scores)
    # What is below this sums to less than is cut off, whatever its order: only the rest has to be sorted.
    least = (1 - p) / scores.size
    candidates = np.flatnonzero(probabilities > least)
    cut = float(probabilities.sum() - probabilities[candidates].sum())
    order = candidates[np.argsort(probabilities[candidates], kind="stable")]
    kept = cut + np.cumsum(probabilities[order]) > 1 - p
    kept[-1:] = True
    mask = np.zeros(scores.size, np.bool_)
    mask[order[kept]] = True
    return mask


def min_p_kept(scores: Array, p: float) -> Array:
    """bool: those at least ``p`` times as probable as the likeliest. Source: min-p, arXiv 2407.01082."""
    return np.asarray(scores >= scores.max() + np.log(p)) if p > 0 else np.ones(scores.size, np.bool_)


def softmax(scores: Array) -> Array:
    """float64 probabilities."""
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(powers / powers.sum())


def log_softmax(scores: Array) -> Array:
    """float64 log-probabilities."""
    shifted = scores.astype(np.float64) - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


class Sampler:
    """Chooses the tokens of one row: penalties, bans, temperature, cuts, then a draw or the likeliest.

    ``history``: the row's tokens so far, which count for the penalties; ``row``: its place in the batch,
    that makes its draws differ from the others'.
    """

    def __init__(self, policy: Policy, vocabulary: int, history: Sequence[int] = (), row: int = 0) -> None:
        self._policy = policy
        self._random = np.random.default_rng(None if policy.seed is None else [policy.seed, row])
        self._seen = np.zeros(vocabulary, np.bool_)
        self._unique = np.zeros(0, np.int64)
        self._tokens = list(history)
        self._written = 0
        # a forced first token does not count as the begin of the text
        self._begin = int(policy.forced_bos is not None and len(self._tokens) == 1)
        self._followers: dict[tuple[int, ...], list[int]] = {}
        self._eos = np.array([t for t in policy.eos if t < vocabulary], np.int64)
        self._banned = np.array([t for t in policy.suppress if t < vocabulary], np.int64)
        self._banned_first = np.array([t for t in policy.begin_suppress if t < vocabulary], np.int64)
        self._note_seen(np.unique(np.asarray(history, np.int64)))
        for end in range(len(self._tokens)):
            self._note_ngram(end)

    def choose(self, logits: Array) -> int:
        """The next token after ``logits`` float[vocabulary].

        Raises: CompileError if they are not numbers.
        """
        policy = self._policy
        if policy.forced_bos is not None and len(self._tokens) == 1:
            return policy.forced_bos
        if policy.forced_eos is not None and self._written == policy.max_tokens - 1:
            return policy.forced_eos
        scores = self._processed(logits)
        if not policy.temperature:
            return int(scores.argmax())
        return self._drawn(scores)

    def push(self, token: int) -> None:
        """Take ``token`` as the row's next."""
        self._tokens.append(token)
        self._written += 1
        if self._policy.repetition_penalty != 1.0 and not self._seen[token]:
            self._note_seen(np.array([token]))
        self._note_ngram(len(self._tokens) - 1)

    def _processed(self, logits: Array) -> Array:
        policy = self._policy
        scores = logits.astype(np.float32, copy=True)
        if policy.repetition_penalty != 1.0:
            scores = penalized(scores, self._unique, policy.repetition_penalty)
        if policy.no_repeat_ngram:
            scores[self._followers.get(self._tail(), [])] = -np.inf
        if self._written < policy.min_tokens:
            scores[self._eos] = -np.inf
        scores[self._banned] = -np.inf
        if self._written == self._begin:
            scores[self._banned_first] = -np.inf
        return scores

    def _drawn(self, scores: Array) -> int:
        policy = self._policy
        best = float(scores.max())
        if not np.isfinite(best):
            fix = "check the model with `miaotui verify`, or compile with another precision"
            raise CompileError("logits", f"are not finite (the greatest is {best})", fix)
        tokens = np.flatnonzero(scores > -np.inf)
        kept = (scores[tokens] - best) / policy.temperature
        if policy.top_k:
            mask = top_k_kept(kept, policy.top_k)
            tokens, kept = tokens[mask], kept[mask]
        if policy.top_p < 1:
            mask = top_p_kept(kept, policy.top_p)
            tokens, kept = tokens[mask], kept[mask]
        if policy.min_p:
            mask = min_p_kept(kept, policy.min_p)
            tokens, kept = tokens[mask], kept[mask]
        sums = np.cumsum(softmax(kept))
        return int(
            tokens[min(np.searchsorted(sums, self._random.random() * sums[-1], "right"), len(sums) - 1)]
        )

    def _note_seen(self, tokens: Array) -> None:
        tokens = tokens[tokens < self._seen.size]
        self._seen[tokens] = True
        self._unique = np.concatenate([self._unique, tokens])

    def _tail(self) -> tuple[int, ...]:
        size = self._policy.no_repeat_ngram - 1
        return tuple(self._tokens[len(self._tokens) - size :]) if size else ()

    def _note_ngram(self, end: int) -> None:
        """Remember that the token at ``end`` followed those before it."""
        size = self._policy.no_repeat_ngram - 1
        if size >= 0 and end >= size:
            before = tuple(self._tokens[end - size : end])
            self._followers.setdefault(before, []).append(self._tokens[end])
