"""Language models of every family, small and random, as transformers builds them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.program import Program
from miaotui.frontends.huggingface import default_inputs
from miaotui.frontends.pytorch import import_module
from support.once import once
from support.programs import read_program, write_program
from support.torch_nets import randomize

VOCABULARY = 300
CONTEXT = 128
WINDOW = 12
"""Shorter than what is generated, so that it matters."""

_TOKENS: Mapping[str, Any] = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
_MHA: Mapping[str, Any] = {
    **_TOKENS, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": CONTEXT, "use_cache": False,
}  # fmt: skip
_GQA = {**_MHA, "num_key_value_heads": 2}
_GEMMA = {**_GQA, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": WINDOW}
_FALCON: Mapping[str, Any] = {
    **_TOKENS, "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "use_cache": False,
}  # fmt: skip

DECODERS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bloom": (
        "BloomForCausalLM", "BloomConfig",
        {
            **_TOKENS, "vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4,
            "use_cache": False,
        },
    ),
    "cohere": ("CohereForCausalLM", "CohereConfig", _GQA),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**_FALCON, "multi_query": True}),
    "falcon-new": (
        "FalconForCausalLM", "FalconConfig",
        {**_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _GEMMA),
    "gemma3": (
        "Gemma3ForCausalLM", "Gemma3TextConfig",
        {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {
            **_TOKENS, "vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4,
            "n_positions": CONTEXT, "use_cache": False,
        },
    ),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _MHA),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GQA),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_GQA, "sliding_window": WINDOW}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _GQA),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {
            **_TOKENS, "vocab_size": VOCABULARY, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "max_position_embeddings": CONTEXT, "word_embed_proj_dim": 64,
            "use_cache": False,
        },
    ),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GQA),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GQA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GQA, "head_dim": 16}),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", {**_GQA, "num_hidden_layers": 4}),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {**_GQA, "partial_rotary_factor": 0.5}),
}  # fmt: skip
"""Architecture, configuration class and its options, by family."""

START = 2
_TRANSLATOR: Mapping[str, Any] = {
    **_TOKENS, "vocab_size": VOCABULARY, "d_model": 64, "decoder_start_token_id": START, "use_cache": False,
}  # fmt: skip
_BART = {
    **_TRANSLATOR, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96,
    "max_position_embeddings": CONTEXT, "forced_eos_token_id": None,
}  # fmt: skip
_T5 = {**_TRANSLATOR, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}

TRANSLATORS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bart": ("BartForConditionalGeneration", "BartConfig", _BART),
    "marian": ("MarianMTModel", "MarianConfig", {**_BART, "scale_embedding": True}),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5),
    "t5-gated": (
        "T5ForConditionalGeneration", "T5Config",
        {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
}  # fmt: skip
"""The same for encoder-decoders."""


BERT: tuple[str, str, Mapping[str, Any]] = (
    "BertModel", "BertConfig",
    {
        "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 104, "max_position_embeddings": 64,
    },
)  # fmt: skip
"""The same of an encoder."""


def build(architecture: str, config: str, options: Mapping[str, Any]) -> Any:
    """The model with random weights that keep activations near unit scale."""
    transformers = importlib.import_module("transformers")
    return randomize(getattr(transformers, architecture)(getattr(transformers, config)(**options)))


def imported(model: Any, *others: str) -> Program:
    """The model as the frontend gives it; ``others``: ``attention_mask`` or ``position_ids`` besides.

    Exports take seconds, and many tests begin with the same.
    """

    def write(path: Path) -> None:
        write_program(_imported(model, others), path)

    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    facts = f"{model.config!r}{others}".encode()
    return read_program(once(f"{type(model).__name__}-{sha256(facts + weights).hexdigest()}", write))


def _imported(model: Any, others: Sequence[str]) -> Program:
    inputs: dict[str, Any] = dict(default_inputs(model))
    batch, length = inputs["input_ids"].shape
    given = {
        "attention_mask": np.ones((batch, length), np.int64),
        "position_ids": np.tile(np.arange(length), (batch, 1)),
    }
    inputs |= {name: given[name] for name in others}
    return import_module(model, CompileOptions(), inputs, framework="transformers").program


def translated(
    model: Any, ids: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], count: int
) -> list[list[int]]:
    """The source's own greedy translation of masked sources."""
    torch = importlib.import_module("torch")
    settings = model.generation_config
    settings.eos_token_id = settings.forced_eos_token_id = settings.bad_words_ids = None
    settings.pad_token_id, settings.decoder_start_token_id, settings.num_beams = 0, START, 1
    with torch.no_grad():
        made = model.generate(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), do_sample=False,
            max_new_tokens=count, min_new_tokens=count,
        )  # fmt: skip
    rows: list[list[int]] = made[:, 1:].tolist()
    return rows


def generated(model: Any, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """The source's own greedy tokens; shorter prompts are padded on the left."""
    torch = importlib.import_module("torch")
    length = max(map(len, prompts))
    ids = np.zeros((len(prompts), length), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    settings = model.generation_config
    settings.eos_token_id, settings.pad_token_id, settings.use_cache = None, 0, True
    with torch.no_grad():
        made = model.generate(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), do_sample=False, use_cache=True,
            max_new_tokens=count, min_new_tokens=count,
        )  # fmt: skip
    rows: list[list[int]] = made[:, length:].tolist()
    return rows
