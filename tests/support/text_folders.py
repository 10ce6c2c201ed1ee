"""Small random text encoders as folders: sentence-transformers, classifiers, question answerers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from .small_tokenizers import save

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def encoder_folder(folder: Path, kind: str = "BertModel", **config: Any) -> Any:
    """A BERT of class ``kind`` with random weights and a WordPiece tokenizer; the module."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    length = config.get("max_position_embeddings", 64)
    save("WordPiece", folder, model_max_length=length, model_input_names=names)
    settings = {"vocab_size": 900, "max_position_embeddings": 64, "initializer_range": 0.4, **SIZES, **config}
    torch.manual_seed(0)
    module = getattr(transformers, kind)(transformers.BertConfig(**settings)).eval()
    module.save_pretrained(folder)
    return module


def sentence_folder(
    folder: Path,
    pooling: dict[str, Any],
    *,
    dense: tuple[int, str] | None = None,
    normalize: bool = True,
    settings: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    kind: str = "BertModel",
) -> Any:
    """A sentence-transformers folder; ``dense``: width and activation of a layer behind the pooling."""
    module = encoder_folder(folder, kind)
    listed = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(listed)
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **pooling})
    if settings is not None:
        _write(folder / "sentence_bert_config.json", settings)
    if options is not None:
        _write(folder / "config_sentence_transformers.json", options)
    if dense:
        width, activation = dense
        inputs = 32 * max(1, sum(v is True for v in pooling.values()))
        config = {"in_features": inputs, "out_features": width, "bias": True}
        _write(folder / "2_Dense" / "config.json", {**config, "activation_function": activation})
        linear = torch.nn.Linear(inputs, width)
        state = {f"linear.{name}": tensor.detach().clone() for name, tensor in linear.state_dict().items()}
        save_file(state, folder / "2_Dense" / "model.safetensors")
    return module


def _write(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
