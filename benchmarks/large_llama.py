"""A GGUF file of Llama's shape with 1.1 billion random weights, written tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LAYERS, WIDTH, INNER, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 22, 2048, 5632, 32, 4, 32000, 2048
SPREAD = 0.02
"""Standard deviation of the weights, about."""


def write_large_llama(path: Path, kind: str) -> None:
    """Write ``path`` with all matrices in blocks of ``kind``: Q4_0, Q4_K or Q8_0."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"Llama 1.1 B {kind}")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    tokens = ["<pad>", "<s>", "</s>", "a", "b", "ab", *(f"t{i}" for i in range(6, VOCABULARY))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (VOCABULARY - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random, type_ = np.random.default_rng(0), gguf.GGMLQuantizationType[kind]
    narrow = WIDTH // HEADS * KV_HEADS
    layer = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (narrow, WIDTH), "attn_v": (narrow, WIDTH),
        "attn_output": (WIDTH, WIDTH), "ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }  # fmt: skip
    matrices = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        matrices |= {f"blk.{i}.{name}": size for name, size in layer.items()}
    for name, (rows, columns) in matrices.items():
        blocks = _blocks(rows, columns, type_, random)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=type_)
    ones = np.ones(WIDTH, np.float32)
    for name in ("output_norm", *(f"blk.{i}.{n}" for i in range(LAYERS) for n in ("attn_norm", "ffn_norm"))):
        writer.add_tensor(f"{name}.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(rows: int, columns: int, kind: Any, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Random blocks uint8[rows, bytes] whose scales give weights of mean about 0 and deviation ``SPREAD``."""
    import gguf

    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)

    def half(value: float) -> np.ndarray[Any, Any]:
        return np.full((len(blocks), 1), value, np.float16).view(np.uint8)

    if kind.name == "Q4_K":  # d, dmin: codes of 0..15 by scales of about 31, less minima of about 31
        blocks[:, 0:2], blocks[:, 2:4] = half(SPREAD / 31 / 4.6), half(SPREAD / 31 / 4.6 * 7.5)
    else:
        blocks[:, 0:2] = half(SPREAD / (4.6 if kind.name == "Q4_0" else 74))
    return blocks.reshape(rows, -1)
