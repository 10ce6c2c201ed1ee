"""A Hugging Face folder of Llama's shape with random bfloat16 weights, written shard by shard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

TINY_LLAMA = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
"""The shape of a Llama of 1.1 billion parameters."""


def write_llama(folder: Path, shape: dict[str, int], layers_per_shard: int = 4) -> int:
    """Write configuration, index and shards; at most one tensor is in memory. Returns the parameter count."""
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, **shape,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    width, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    narrow = width // shape["num_attention_heads"] * shape["num_key_value_heads"]
    layer = {
        "input_layernorm": (width,), "post_attention_layernorm": (width,),
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width),
        "self_attn.v_proj": (narrow, width), "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
    }  # fmt: skip
    ends = {"model.embed_tokens": (vocabulary, width), "model.norm": (width,), "lm_head": (vocabulary, width)}
    shards = [{f"{name}.weight": size for name, size in ends.items()}]
    count = shape["num_hidden_layers"]
    shards += [
        {
            f"model.layers.{i}.{name}.weight": size
            for i in range(first, min(first + layers_per_shard, count))
            for name, size in layer.items()
        }
        for first in range(0, count, layers_per_shard)
    ]
    random = np.random.default_rng(0)
    placed: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        placed |= dict.fromkeys(tensors, file)
        _write_shard(folder / file, tensors, random)
    total = sum(math.prod(size) for tensors in shards for size in tensors.values())
    index = {"metadata": {"total_size": 2 * total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _write_shard(path: Path, tensors: dict[str, tuple[int, ...]], random: np.random.Generator) -> None:
    header, offset = {}, 0
    for name, size in tensors.items():
        end = offset + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for size in tensors.values():
            file.write(_values(size, random).tobytes())


def _values(size: tuple[int, ...], random: np.random.Generator) -> np.ndarray[Any, Any]:
    """A million random values, their rows drawn again and again for a large tensor: so many take long."""
    count = math.prod(size)
    drawn = min(count, (1 << 20) // size[-1] * size[-1] or count)
    values = random.standard_normal(drawn, dtype=np.float32)
    values *= 1 / math.sqrt(size[-1]) if len(size) == 2 else 0.1
    values += 0 if len(size) == 2 else 1
    rows = (values.view(np.uint32) >> 16).astype(np.uint16).reshape(-1, size[-1])
    return rows if drawn == count else rows[random.integers(0, len(rows), size[0])]
