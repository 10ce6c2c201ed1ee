"""TextEncoder: texts through an executable that embeds, classifies or answers, in batches by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from ...compiler.artifact import Artifact
from ...compiler.errors import InputError, UnsupportedError
from ...compiler.reference import Array, Arrays
from ...compiler.task import FILE, TextTask
from .tokenizer import Tokenizer

Run: TypeAlias = Callable[[Arrays], Arrays]

Text: TypeAlias = str | tuple[str, str]
"""A text, or a pair that is read as one sequence."""


class TextEncoder:
    """The tokenizer and the task of an executable; ``run`` is handed on by who owns the session.

    Raises: UnsupportedError if the executable was compiled without a text task; ModelError for a tokenizer
    that is missing or does not fit.
    """

    def __init__(self, artifact: Artifact) -> None:
        if FILE not in artifact.manifest.files:
            fix = "compile the folder of a sentence-transformers model, a classifier or a question answerer"
            raise UnsupportedError(artifact.folder.name, "was compiled without a text task", fix)
        path = artifact.folder / FILE
        self.task = TextTask.loads(path.read_bytes(), str(path))
        self.tokenizer = Tokenizer.open(artifact, self.task.vocabulary or None)
        self.place = artifact.folder.name
        entry = artifact.manifest.entries["main"]
        self.inputs = frozenset(spec.name for spec in entry.inputs)
        self.outputs = entry.outputs

    def require(self, kind: str) -> TextTask:
        """The task, if it is ``kind``. Raises: UnsupportedError."""
        if self.task.kind != kind:
            raise UnsupportedError(self.place, f"is a model for {self.task.kind}, not {kind}")
        return self.task

    def encodings(self, texts: Sequence[Text]) -> list[Any]:
        """Encodings of the texts, cut to the task's length; special tokens stay."""
        return self.tokenizer.encodings(texts, self.task.length)

    def batches(
        self, encodings: Sequence[Any], batch_size: int, run: Run
    ) -> Iterator[tuple[list[int], Arrays]]:
        """Places and outputs of each batch: the longest first, padded on the right to its longest."""
        if batch_size < 1:
            raise InputError("batch_size", f"{batch_size} is no size", "give at least 1")
        order = sorted(range(len(encodings)), key=lambda place: -len(encodings[place].ids))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            yield places, run(self.padded([encodings[place] for place in places]))

    def padded(self, encodings: Sequence[Any]) -> Arrays:
        """The model's inputs, int64[batch, sequence], for encodings of any lengths."""
        shape = (len(encodings), max(1, *(len(each.ids) for each in encodings)))
        ids = np.full(shape, self.tokenizer.pad_id or 0, np.int64)
        mask, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, each in enumerate(encodings):
            count = len(each.ids)
            ids[row, :count], types[row, :count], mask[row, :count] = each.ids, each.type_ids, 1
        made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: array for name, array in made.items() if name in self.inputs}


def listed(texts: object, what: str) -> list[Text]:
    """``texts`` as a list. Raises: InputError for a single text, and for items that are no texts."""
    if isinstance(texts, str | bytes) or not hasattr(texts, "__iter__"):
        raise InputError(what, f"is a {type(texts).__name__}, no list of texts", "give [text]")
    found: list[Any] = list(texts)
    for place, text in enumerate(found):
        pair = isinstance(text, tuple) and len(text) == 2 and all(isinstance(part, str) for part in text)
        if not isinstance(text, str) and not pair:
            raise InputError(f"{what}[{place}]", f"is a {type(text).__name__}, no text", "give str")
    return found


def collected(batches: Iterator[tuple[list[int], Arrays]], name: str, empty: Array) -> Array:
    """Output ``name`` of all batches, rows in the order of the texts; ``empty`` for none."""
    rows: dict[int, Array] = {}
    for places, outputs in batches:
        rows |= zip(places, outputs[name], strict=True)
    return np.stack([rows[place] for place in range(len(rows))]) if rows else empty
