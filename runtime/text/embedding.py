"""Sentence embeddings of texts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ...compiler.errors import InputError
from ...compiler.reference import Array
from ...compiler.task import EMBEDDING
from .encoder import Run, TextEncoder, collected, listed


def embed(
    encoder: TextEncoder, texts: Iterable[str], run: Run, batch_size: int = 32, prompt: str | None = None
) -> Array:
    """float32[texts, width]; texts longer than the task's length are cut.

    ``prompt``: name of a text that the model wants in front (``query``); None takes the model's
    default, an empty one nothing.
    Raises: InputError for anything but a list of texts, and for an unknown prompt; UnsupportedError if the
    model makes no sentence embeddings.
    """
    task = encoder.require("embedding")
    name = task.prompt if prompt is None else prompt
    if name and name not in task.prompts:
        fix = f"it has {', '.join(task.prompts)}" if task.prompts else "it has none"
        raise InputError("prompt", f"the model has no prompt {name!r}", fix)
    front = task.prompts[name] if name else ""
    given = listed(texts, "texts")
    if front:
        given = [front + text if isinstance(text, str) else text for text in given]
    spec = next(spec for spec in encoder.outputs if spec.name == EMBEDDING)
    width = spec.shape[-1] if spec.shape else 0
    empty = np.zeros((0, width if isinstance(width, int) else 0), np.float32)
    found = collected(encoder.batches(encoder.encodings(given), batch_size, run), EMBEDDING, empty)
    return found.astype(np.float32, copy=False)
