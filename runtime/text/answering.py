"""Extractive question answering: the part of a text that answers a question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...compiler.errors import InputError
from ...compiler.reference import Array
from .encoder import Run, TextEncoder

MOST, STRIDE = 384, 128
"""Tokens of a window, and how many of them neighbours share: transformers' defaults."""

CANDIDATES = 12
"""Spans of a window that are looked at."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``text`` is ``context[start:end]``; ``score`` adds up the probabilities of where it was found."""

    text: str
    start: int
    end: int
    score: float


def answer(
    encoder: TextEncoder,
    question: str,
    context: str,
    run: Run,
    batch_size: int = 8,
    longest: int = 15,
) -> Answer:
    """The best answer of at most ``longest`` tokens, widened to whole words.

    A long context is read in overlapping windows. Equal to transformers' question-answering pipeline.
    Raises: InputError for an empty question or context, or a question that leaves no room for the context;
    UnsupportedError if the model finds no answers.
    """
    task = encoder.require("answering")
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text.strip():
            raise InputError(name, "is empty" if isinstance(text, str) else "is no text")
    length = min(task.length, MOST)
    windows = encoder.tokenizer.windows(question, context, length, min(length // 2, STRIDE))
    first, last = (spec.name for spec in encoder.outputs[:2])
    logits: dict[int, tuple[Array, Array]] = {}
    for places, outputs in encoder.batches(windows, batch_size, run):
        logits |= {place: (outputs[first][row], outputs[last][row]) for row, place in enumerate(places)}
    found: dict[str, Answer] = {}
    for place, window in enumerate(windows):
        for begin, end, score in _spans(
            window, *logits[place], encoder.tokenizer.id_of("cls_token"), longest
        ):
            text = context[begin:end]
            before = found.get(text.lower(), Answer(text, begin, end, 0.0))
            found[text.lower()] = replace(before, score=before.score + score)
    return max(found.values(), key=lambda each: each.score)


def _spans(
    window: Any, starts: Array, ends: Array, cls: int | None, longest: int
) -> Iterator[tuple[int, int, float]]:
    """The best candidates of a window: characters of the context, whole words, and the probability."""
    sequences = window.sequence_ids
    inside = np.array([sequence == 1 for sequence in sequences])
    counted = inside | (np.array(window.ids) == cls)  # models put "no answer" on CLS
    first, last = _softmax(starts[: len(inside)], counted), _softmax(ends[: len(inside)], counted)
    scores = np.tril(np.triu(np.outer(first * inside, last * inside)), longest - 1)
    for flat in np.argsort(-scores, axis=None, kind="stable")[:CANDIDATES]:
        start, end = np.unravel_index(flat, scores.shape)
        if inside[start] and inside[end] and end >= start:
            yield *_characters(window, int(start), int(end)), float(scores[start, end])


def _softmax(logits: Array, counted: Array) -> Array:
    masked = np.where(counted, logits.astype(np.float64), -10000.0)
    powers = np.exp(masked - masked.max())
    return np.asarray(powers / powers.sum())


def _characters(window: Any, start: int, end: int) -> tuple[int, int]:
    """Where the words of two tokens start and end in the context."""
    first, last = window.token_to_word(start), window.token_to_word(end)
    begin = None if first is None else window.word_to_chars(first, sequence_index=1)
    finish = None if last is None else window.word_to_chars(last, sequence_index=1)
    offsets = window.offsets
    return (begin or offsets[start])[0], (finish or offsets[end])[1]
