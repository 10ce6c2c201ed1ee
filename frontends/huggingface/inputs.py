"""What a transformers model is called with by convention: ids and mask, pixels, encoder and decoder ids."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from ...compiler.reference import Arrays

BATCH, LENGTH, TARGET = 2, 8, 6


def default_inputs(model: Any) -> Arrays:
    """Example inputs by parameter name.

    Encoders take input_ids and attention_mask, int64[2, 8], and those that classify or read pairs of texts
    token_type_ids; decoders input_ids alone; encoder-decoders input_ids, attention_mask and
    decoder_input_ids; vision models pixel_values, float32[2, channels, size, size]; speech models
    input_values or input_features.
    """
    config = model.config
    main = str(getattr(model, "main_input_name", "input_ids"))
    made: Arrays = {}
    if main == "pixel_values":
        made[main] = _uniform(BATCH, *_image(config))
    elif main == "input_values":
        made[main] = _uniform(BATCH, 16000)
    elif main == "input_features":
        bins = int(getattr(config, "num_mel_bins", 80))
        made[main] = _uniform(BATCH, bins, 2 * getattr(config, "max_source_positions", 1500))
    else:
        made[main] = _ids(config, LENGTH)
        if _is_encoder(model) or _translates(model):
            made["attention_mask"] = np.ones((BATCH, LENGTH), np.int64)
        if _takes_pairs(model):
            made["token_type_ids"] = np.repeat([[0, 1]], [LENGTH // 2, LENGTH - LENGTH // 2], 1).repeat(
                BATCH, 0
            )
    if getattr(config, "is_encoder_decoder", False):
        made["decoder_input_ids"] = _ids(config, TARGET)
    return made


def _translates(model: Any) -> bool:
    """Whether a decoder writes about a source text, of which texts of other lengths may be in the batch."""
    return bool(getattr(model.config, "is_encoder_decoder", False)) and "attention_mask" in _parameters(model)


def _is_encoder(model: Any) -> bool:
    config = model.config
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        return False
    if model.can_generate() or type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        return False
    if getattr(config, "use_cache", None) is not None and "past_key_values" in _parameters(model):
        return _bidirectional(model)
    return "attention_mask" in _parameters(model)


def _takes_pairs(model: Any) -> bool:
    """Whether the model reads two texts and is told which token belongs to which."""
    reads = type(model).__name__.endswith(("ForSequenceClassification", "ForQuestionAnswering"))
    types = getattr(model.config, "type_vocab_size", 0) or 0
    return reads and types > 1 and "token_type_ids" in _parameters(model)


def _bidirectional(model: Any) -> bool:
    """Whether attention looks both ways: BERT has a cache parameter too, but its layers are not causal."""
    return not any(getattr(part, "is_causal", False) for part in model.modules())


def _parameters(model: Any) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _ids(config: Any, length: int) -> np.ndarray[Any, Any]:
    vocabulary = int(getattr(config.get_text_config(), "vocab_size", 2) or 2)
    return (np.arange(BATCH * length, dtype=np.int64).reshape(BATCH, length) * 7 + 5) % vocabulary


def _uniform(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def _image(config: Any) -> tuple[int, int, int]:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", 224)
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(getattr(config, "num_channels", 3)), int(height), int(width)
