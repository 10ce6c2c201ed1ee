"""The transformers configuration that a GGUF file's metadata describes, checked against its tensors."""

from __future__ import annotations

import math
from typing import Any

from ...compiler.errors import ModelError, Problem, UnsupportedError
from .architecture import Architecture
from .header import AGAIN, Header

_LARGE = {("gemma2", 46), ("gemma3", 62)}
"""Sizes (27B) that scale scores by the width per head of the residual stream, not of a head."""


class Settings:
    """Typed reading of one architecture's metadata."""

    def __init__(self, header: Header, prefix: str) -> None:
        self.header, self.prefix = header, prefix

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer. Raises: ModelError if it is missing without a default, or is none."""
        found = self.header.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(found, list) and len(set(found)) == 1:
            found = found[0]
        if type(found) is not int or not 0 < found < 2**31:
            raise self._wrong(key, found, "a positive integer")
        return found

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number. Raises: as ``integer``."""
        found = self.header.metadata.get(f"{self.prefix}.{key}", default)
        if isinstance(found, bool | str | list) or found is None or not 0 < found < math.inf:
            raise self._wrong(key, found, "a positive number")
        return float(found)

    def has(self, key: str) -> bool:
        """Whether the file gives ``key``."""
        return f"{self.prefix}.{key}" in self.header.metadata

    def _wrong(self, key: str, found: object, wanted: str) -> ModelError:
        place = f"{self.header.path.name}: '{self.prefix}.{key}'"
        said = "is missing" if found is None else f"is {str(found)[:60]}, not {wanted}"
        return ModelError(place, said, AGAIN)


def config_of(header: Header, prefix: str, architecture: Architecture) -> dict[str, Any]:
    """Fields of the configuration, ``model_type`` first.

    Raises: ModelError for settings that are missing, impossible or contradict the tensors;
    UnsupportedError for rotary scaling that has no translation.
    """
    read = Settings(header, prefix)
    heads = read.integer("attention.head_count")
    hidden = read.integer("embedding_length")
    width = read.integer("attention.key_length", hidden // heads or None)
    epsilon, epsilon_field = architecture.epsilon
    layers = read.integer("block_count")
    base = read.real("rope.freq_base", 10000.0)
    made: dict[str, Any] = {
        "model_type": architecture.model_type,
        "vocab_size": _vocabulary(header),
        "hidden_size": hidden,
        "intermediate_size": read.integer("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": read.integer("attention.head_count_kv", heads),
        "head_dim": width,
        "max_position_embeddings": read.integer("context_length"),
        epsilon_field: read.real(epsilon),
        "rope_theta": base,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
        "use_bias": "blk.0.attn_q.bias" in header.tensors,
        "use_cache": False,
    }
    for key, name in architecture.settings.items():
        if read.has(key):
            made[name] = read.integer(key) if name == "sliding_window" else read.real(key)
    if architecture.windows:
        every = read.integer("attention.sliding_window_pattern", architecture.windows)
        made["layer_types"] = [
            "sliding_attention" if (i + 1) % every else "full_attention"
            for i in range(_counted(header, layers))
        ]
        large = (prefix, layers) in _LARGE
        made["query_pre_attn_scalar"] = hidden // heads if large else width
    for token in ("bos", "eos", "padding"):
        found = header.metadata.get(f"tokenizer.ggml.{token}_token_id")
        made[f"{'pad' if token == 'padding' else token}_token_id"] = found if type(found) is int else None
    _rotary(made, read, header)
    _check(header, made)
    return made


def _vocabulary(header: Header) -> int:
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(header.path.name, "has no matrix 'token_embd.weight'", AGAIN)
    return embedding.shape[0]


def _counted(header: Header, layers: int) -> int:
    """``layers`` if the file has tensors of so many, so that nothing is made for layers that do not exist."""
    found = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if found != {str(i) for i in range(len(found))} or len(found) != layers:
        fact = f"declares {layers:,} blocks, its tensors are of {len(found)}"
        raise ModelError(header.path.name, fact, AGAIN)
    return layers


def _rotary(made: dict[str, Any], read: Settings, header: Header) -> None:
    width, turned = made["head_dim"], read.integer("rope.dimension_count", made["head_dim"])
    if turned != width:
        if made["model_type"] != "phi3" or turned > width:
            fact = f"rotates {turned} of {width} dimensions, which {made['model_type']} does not"
            raise UnsupportedError(header.path.name, fact, "give the Hugging Face folder")
        made["partial_rotary_factor"] = turned / width
    kind = header.metadata.get(f"{read.prefix}.rope.scaling.type", "none")
    factors = [name for name in header.tensors if name.startswith("rope_factors")]
    if factors or kind not in ("none", "linear", "yarn"):
        fact = f"scales rotary positions by {factors[0] if factors else kind!r}, which has no translation"
        raise UnsupportedError(header.path.name, fact, "give the Hugging Face folder")
    if kind == "none":
        return
    scaling: dict[str, Any] = {"rope_type": kind, "factor": read.real("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = read.integer("rope.scaling.original_context_length")
    made["rope_scaling"] = scaling


def _check(header: Header, made: dict[str, Any]) -> None:
    """Sizes that tensors bear out: a giant one would ask for memory that the file does not stand for."""
    _counted(header, made["num_hidden_layers"])
    hidden, width = made["hidden_size"], made["head_dim"]
    queries, keys = made["num_attention_heads"] * width, made["num_key_value_heads"] * width
    inner = made["intermediate_size"]
    wanted = {
        "token_embd.weight": (made["vocab_size"], hidden),
        "blk.0.attn_q.weight": (queries, hidden),
        "blk.0.attn_k.weight": (keys, hidden),
        "blk.0.attn_qkv.weight": (queries + 2 * keys, hidden),
        "blk.0.ffn_down.weight": (hidden, inner),
    }
    wrong = [
        Problem(
            f"{header.path.name}: tensor {name!r}",
            f"is {list(header.tensors[name].shape)}, the settings want {list(shape)}",
            AGAIN,
        )
        for name, shape in wanted.items()
        if name in header.tensors and header.tensors[name].shape != shape
    ]
    absent = "blk.0.attn_q.weight" not in header.tensors and "blk.0.attn_qkv.weight" not in header.tensors
    if absent or "blk.0.ffn_down.weight" not in header.tensors:
        wrong.append(Problem(header.path.name, "lacks the first block's attention or feed-forward", AGAIN))
    if made["num_attention_heads"] % made["num_key_value_heads"]:
        fact = f"has {made['num_key_value_heads']} key heads, which do not divide its query heads"
        wrong.append(Problem(header.path.name, fact, AGAIN))
    if width % 2:
        wrong.append(Problem(header.path.name, f"has heads of odd width {width}", AGAIN))
    if wrong:
        raise ModelError.of(wrong)
