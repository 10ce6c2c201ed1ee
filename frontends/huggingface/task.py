"""The text task of a transformers encoder: what its configuration says about labels and lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...compiler.program import DimRange, Program
from ...compiler.task import FILE, Activation, TextTask
from .sentence import Sentence
from .tokenizer import CONFIG, DEFINITION

SEQUENCE = "sequence"
"""Name of the length of ids among a program's dimensions."""

CLASSIFIER, READER = "ForSequenceClassification", "ForQuestionAnswering"
"""How the classes are called that give scores of labels, and of where an answer starts and ends."""


def describe_task(program: Program, module: Any, sentence: Sentence | None) -> None:
    """Put task.json among the program's assets if ``module`` embeds, classifies or answers from texts.

    Sequences longer than the module's position table are ruled out, where the export can't see that.
    """
    limit, span = _table(module), program.dims.get(SEQUENCE)
    if limit is not None and span is not None and (span.maximum is None or span.maximum > limit):
        program.dims[SEQUENCE] = DimRange(span.minimum, limit)
    if DEFINITION not in program.assets:
        return
    task = _task(program, module, sentence)
    if task is not None:
        program.assets[FILE] = task.dumps()


def _task(program: Program, module: Any, sentence: Sentence | None) -> TextTask | None:
    config, name = module.config, type(module).__name__
    wanted = sentence.length if sentence and sentence.length else _length(program.assets)
    lengths = [n for n in (wanted, _positions(module)) if n is not None]
    length = min(lengths, default=512)
    vocabulary = int(getattr(config.get_text_config(), "vocab_size", 0))
    if sentence:
        return TextTask("embedding", length, vocabulary, prompts=sentence.prompts, prompt=sentence.prompt)
    if name.endswith(READER):
        return TextTask("answering", length, vocabulary)
    if not name.endswith(CLASSIFIER):
        return None
    labels = {int(number): str(label) for number, label in config.id2label.items()}
    names = tuple(labels.get(number, f"LABEL_{number}") for number in range(config.num_labels))
    if config.problem_type == "regression":
        return TextTask("classification", length, vocabulary, labels=names, activation="none")
    single = config.problem_type != "multi_label_classification" and len(names) > 1
    activation: Activation = "softmax" if single else "sigmoid"
    return TextTask("classification", length, vocabulary, labels=names, activation=activation)


def _positions(module: Any) -> int | None:
    """Most positions that the module was made for."""
    found = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    return _table(module) or (found if isinstance(found, int) and found > 0 else None)


def _table(module: Any) -> int | None:
    """Rows of an encoder's position table; some families leave the first ones unused. None if it has none."""
    if getattr(module.config, "is_encoder_decoder", False) or module.can_generate():
        return None
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and hasattr(part, "num_embeddings"):
            unused = 0 if part.padding_idx is None else part.padding_idx + 1
            return int(part.num_embeddings) - unused
    return None


def _length(assets: Mapping[str, Path | bytes]) -> int | None:
    """The length that the tokenizer's configuration says."""
    data = assets.get(CONFIG)
    found = json.loads(data).get("model_max_length") if isinstance(data, bytes) else None
    return found if isinstance(found, int) else None
