"""Labels of texts and their scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ...compiler.reference import Array
from ...compiler.task import Activation
from .encoder import Run, Text, TextEncoder, collected, listed


@dataclass(frozen=True, slots=True)
class Classification:
    """The best label of a text with its score, and the scores of all labels, best first."""

    label: str
    score: float
    scores: dict[str, float]


def classify(
    encoder: TextEncoder, texts: Iterable[Text], run: Run, batch_size: int = 32
) -> list[Classification]:
    """A Classification of each text, or pair of texts; texts longer than the task's length are cut.

    Raises: InputError for anything but a list of texts; UnsupportedError if the model gives no labels.
    """
    task = encoder.require("classification")
    given = listed(texts, "texts")
    name = encoder.outputs[0].name
    empty = np.zeros((0, len(task.labels)), np.float32)
    logits = collected(encoder.batches(encoder.encodings(given), batch_size, run), name, empty)
    made = []
    for row in activated(logits.astype(np.float64), task.activation):
        order = np.argsort(-row, kind="stable")
        scores = {task.labels[place]: float(row[place]) for place in order}
        best = task.labels[order[0]]
        made.append(Classification(best, scores[best], scores))
    return made


def activated(logits: Array, activation: Activation) -> Array:
    """Scores of logits float[texts, labels]."""
    if activation == "sigmoid":
        return np.asarray(1 / (1 + np.exp(-logits)))
    if activation == "softmax":
        shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
    return logits
