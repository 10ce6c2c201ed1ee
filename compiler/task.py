"""TextTask: what an encoder makes of a text, and how the text is prepared for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from .errors import ArtifactError
from .jsonable import from_json, to_json

FILE = "task.json"
"""Name of the file in the executable folder that holds the task."""

EMBEDDING = "sentence_embedding"
"""Output of an embedding model: float32[batch, width]."""


Activation: TypeAlias = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, slots=True)
class TextTask:
    """Facts of a text encoder that are not in its graph.

    ``length``: most tokens of a sequence, special ones included. ``vocabulary``: how many ids it knows.
    ``prompts``: texts to put in front, by name; ``prompt``: the one taken if none is named. ``labels``:
    classes in the order of the logits; ``activation``: what makes scores of logits.
    """

    kind: Literal["embedding", "classification", "answering"]
    length: int
    vocabulary: int
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    labels: tuple[str, ...] = ()
    activation: Activation = "softmax"

    def dumps(self) -> bytes:
        """The task as JSON."""
        return (
            json.dumps(to_json(self), ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass") + b"\n"
        )

    @classmethod
    def loads(cls, data: bytes, place: str) -> TextTask:
        """The task in ``data``. Raises: ArtifactError if it is none."""
        try:
            read = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(place, f"is no JSON: {error}", "compile the model again") from None
        return from_json(cls, read, place)
