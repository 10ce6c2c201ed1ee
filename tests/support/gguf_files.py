"""Small GGUF files with random weights of any tensor type, and the torch module they stand for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from miaotui.frontends.gguf.architecture import ARCHITECTURES
from support.torch_nets import randomize

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")

SIZES = {
    "vocab_size": 96, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 64,
    "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A GGUF file and the torch module whose weights are exactly what the file's tensors stand for."""

    path: Path
    module: Any


def write_gguf(
    path: Path,
    architecture: str = "llama",
    types: Mapping[str, str] | str = "F32",
    settings: Mapping[str, Any] | None = None,
    tokens: list[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Written:
    """Write ``path``. ``types``: type of all matrices, or by the stem of a tensor's name (``attn_q``).

    ``settings``: fields of the configuration besides ``SIZES``; ``tokens``: a byte-level tokenizer's;
    ``extra``: further metadata.
    """
    known = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[known.model_type](**{**SIZES, **(settings or {})})
    module = randomize(transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)).eval()
    writer = gguf.GGUFWriter(path, architecture)
    write_settings(writer, architecture, config)
    if tokens is not None:
        write_tokenizer(writer, tokens)
    for key, value in (extra or {}).items():
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add[type(value)](key, value)
    state = module.state_dict()
    for old, new in known.names(config.num_hidden_layers).items():
        if new not in state or (old == "output.weight" and config.tie_word_embeddings):
            continue
        values = state[new].numpy().copy() - np.float32(
            known.norm_shift if old.endswith("norm.weight") else 0
        )
        stem = old.split(".")[-2]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(stem)
        order = _pairs(len(values), heads) if known.interleaved and heads else np.arange(len(values))
        wanted = types if isinstance(types, str) else types.get(stem, "F32")
        kind = Type[wanted if values.ndim == 2 else "F32"]
        stored = values[order]
        raw = pack(stored, kind)
        writer.add_tensor(
            old, raw, raw_dtype=kind, raw_shape=None if kind in (Type.F32, Type.F16) else raw.shape
        )
        meant = np.empty_like(values)
        meant[order] = gguf.quants.dequantize(raw, kind).reshape(values.shape)
        shift = np.float32(known.norm_shift if old.endswith("norm.weight") else 0)
        state[new].copy_(torch.from_numpy(meant + shift))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    module.tie_weights()
    return Written(path, module)


def write_settings(writer: Any, architecture: str, config: Any) -> None:
    """The metadata that llama.cpp's converter writes for ``config``."""
    writer.add_name("Small")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    if architecture == "starcoder2":
        writer.add_layer_norm_eps(config.norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    parameters = config.rope_parameters
    parameters = parameters.get("full_attention", parameters)
    writer.add_rope_freq_base(parameters["rope_theta"])
    if architecture in ("gemma2", "gemma3", "phi3") and getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def write_tokenizer(writer: Any, tokens: list[str]) -> None:
    """A byte-level tokenizer without merges; the first three tokens are pad, bos and eos."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["a b"])
    for add, number in (
        (writer.add_pad_token_id, 0), (writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2)
    ):  # fmt: skip
        add(number)
    writer.add_chat_template("{{ messages[0].content }}")


def pack(values: np.ndarray[Any, Any], kind: Type) -> np.ndarray[Any, Any]:
    """``values`` as tensor data of ``kind``; K types, which gguf can't write, get random blocks instead."""
    if not kind.name.endswith("_K"):
        return gguf.quants.quantize(values, kind)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(values.size)
    blocks = random.integers(0, 256, (values.size // elements, size), dtype=np.uint8)
    scale = np.full(len(blocks), 0.0002 if kind is Type.Q6_K else 0.001, np.float16).view(np.uint8)
    for at in (208,) if kind is Type.Q6_K else (0, 2):
        blocks[:, at : at + 2] = scale.reshape(-1, 2)
    return blocks.reshape(len(values), -1)


def _pairs(rows: int, heads: int) -> np.ndarray[Any, Any]:
    """The order of rows that llama.cpp's converter gives q and k: the halves of a head interleaved."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


BYTES = ["<pad>", "<s>", "</s>", *(chr(c) for c in range(33, 125)), "ab"]
"""96 tokens: three special ones, printable characters, and a pair of them."""
