"""Sampling: from a row's logits to its next token; every step a function over the vocabulary.

Meaning and order are those of transformers' logits processors and warpers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...compiler.errors import CompileError
from ...compiler.reference import Array
from .options import Policy

_BLOCK = 64
"""Scores whose maximum is looked at first."""

_COLDEST = 1e-6
"""The lowest temperature that float32 can divide by; below it draws are greedy anyway."""


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
    candidates = scores
    if k * _BLOCK < scores.size:
        # k blocks have a maximum of the k-th greatest maximum or more: what is less is not among the k
        maxima = scores[: scores.size // _BLOCK * _BLOCK].reshape(-1, _BLOCK).max(1)
        candidates = scores[scores >= np.partition(maxima, -k)[-k]]
    return np.asarray(scores >= np.partition(candidates, -k)[-k])


def top_p_kept(scores: Array, p: float) -> Array:
    """bool: the fewest greatest whose probabilities sum to ``p`` or more, at least one."""
    probabilities = softmax(scores)
    # What is below this sums to less than is cut off, whatever its order: only the rest has to be sorted.
    candidates = np.flatnonzero(probabilities > (1 - p) / scores.size)
    likely = probabilities[candidates]
    order = np.argsort(likely, kind="stable")
    cut = 1 - likely.sum(dtype=np.float64)
    kept = cut + np.cumsum(likely[order], dtype=np.float64) > 1 - p
    kept[-1:] = True
    mask = np.zeros(scores.size, np.bool_)
    mask[candidates[order[kept]]] = True
    return mask


def min_p_kept(scores: Array, p: float) -> Array:
    """bool: those at least ``p`` times as probable as the likeliest. Source: min-p, arXiv 2407.01082."""
    return np.asarray(scores >= scores.max() + np.log(p)) if p > 0 else np.ones(scores.size, np.bool_)


def softmax(scores: Array) -> Array:
    """Probabilities, in the dtype of ``scores``."""
    powers = np.exp(scores - scores.max())
    powers /= powers.sum()
    return np.asarray(powers)


def log_softmax(scores: Array) -> Array:
    """float64 log-probabilities."""
    shifted = scores.astype(np.float64) - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _place(weights: Array, share: float) -> int:
    """Where the running sum of ``weights`` exceeds ``share`` of their sum, found by blocks."""
    edges = np.arange(0, weights.size, _BLOCK)
    sums = np.cumsum(np.add.reduceat(weights, edges), dtype=np.float64)
    target = share * sums[-1]
    block = min(int(np.searchsorted(sums, target, "right")), len(sums) - 1)
    inside = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    rest = target - (sums[block - 1] if block else 0.0)
    place = block * _BLOCK + min(int(np.searchsorted(inside, rest, "right")), len(inside) - 1)
    # the sums of a block and of its parts differ in the last digits: at its border a weight of 0 may be hit
    return place if weights[place] > 0 else int(weights.argmax())


class Sampler:
    """Chooses the tokens of one row: penalties, bans, temperature, cuts, then a draw or the likeliest.

    ``history``: the row's tokens so far, which count for the penalties; ``row``: its place in the batch,
    that makes its draws differ from the others'.
    """

    def __init__(self, policy: Policy, vocabulary: int, history: Sequence[int] = (), row: int = 0) -> None:
        self._policy = policy
        self._random = np.random.default_rng(None if policy.seed is None else [policy.seed, row])
        cuts = (
            (top_k_kept, policy.top_k, policy.top_k > 0),
            (top_p_kept, policy.top_p, policy.top_p < 1),
            (min_p_kept, policy.min_p, policy.min_p > 0),
        )
        self._cuts: list[tuple[Callable[[Array, Any], Array], float]] = [(c, n) for c, n, on in cuts if on]
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
        scores, tokens = (scores - np.float32(best)) / max(policy.temperature, _COLDEST), None
        for cut, limit in self._cuts:
            kept = np.flatnonzero(cut(scores, limit))
            scores, tokens = scores[kept], kept if tokens is None else tokens[kept]
        place = _place(np.exp(scores), self._random.random())
        return place if tokens is None else int(tokens[place])

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
