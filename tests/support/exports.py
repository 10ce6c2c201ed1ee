"""Tiny models exported as exporters of many ages write them: TorchScript and dynamo, any opset."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
import transformers
from miaotui.compiler.program import Program
from miaotui.frontends.onnx import program_from_model
from support.once import once

VOCABULARY = 96
_SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_DECODER = {**_SMALL, "intermediate_size": 48, "max_position_embeddings": 64, "num_key_value_heads": 2}

FAMILIES: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", {**_SMALL, "intermediate_size": 64, "max_position_embeddings": 64}),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "gemma2": (
        "Gemma2ForCausalLM", "Gemma2Config",
        {**_DECODER, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    ),
    "bloom": (
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {**_DECODER, "partial_rotary_factor": 0.5}),
    "cohere": ("CohereForCausalLM", "CohereConfig", _DECODER),
    "t5": (
        "T5EncoderModel", "T5Config",
        {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
    "vit": (
        "ViTModel", "ViTConfig",
        {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
            "image_size": 16, "patch_size": 4,
        },
    ),
}  # fmt: skip
"""Architecture, configuration class and its options, by family."""


class _FirstOutput(torch.nn.Module):
    """The model's first output for one positional input, without a cache.

    ``mask``: give a decoder a padding mask of ones; without one, its packed-sequence check traces an
    operator that the TorchScript exporter lacks.
    """

    def __init__(self, model: torch.nn.Module, image: bool, mask: bool) -> None:
        super().__init__()
        self.model = model
        self.image = image
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = {"pixel_values" if self.image else "input_ids": x}
        if hasattr(self.model, "lm_head"):
            options["use_cache"] = False
            if self.mask:
                options["attention_mask"] = torch.ones_like(x)
        first: torch.Tensor = self.model(**options, return_dict=False)[0]
        return first


def build(family: str, attention: str = "sdpa", mask: bool = False) -> torch.nn.Module:
    """The family's tiny model in evaluation mode; ``attention``: ``sdpa`` or ``eager``; input ``x``."""
    architecture, config, options = FAMILIES[family]
    torch.manual_seed(0)
    settings = getattr(transformers, config)(**options)
    model = getattr(transformers, architecture)._from_config(settings, attn_implementation=attention)
    for name, weight in model.named_parameters():  # norms and biases that are not all ones and zeros
        if weight.dim() == 1:
            weight.data.add_(torch.randn_like(weight) * 0.1)
        elif "embed" not in name:
            weight.data.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    return _FirstOutput(model, family == "vit", mask).eval()


def example(family: str, batch: int = 2, sequence: int = 7, seed: int = 0) -> np.ndarray[Any, Any]:
    """An input of ``family``: token ids int64[batch, sequence] or an image float32[batch, 3, 16, 16]."""
    random = np.random.default_rng(seed)
    if family == "vit":
        return random.standard_normal((batch, 3, 16, 16)).astype(np.float32)
    return random.integers(0, VOCABULARY, (batch, sequence))


def _quietly(export: Callable[[], Any]) -> Any:
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return export()
    finally:
        logging.disable(logging.NOTSET)


def legacy(family: str, opset: int, attention: str = "eager") -> onnx.ModelProto:
    """The TorchScript exporter's model, batch and sequence dynamic."""
    return _exported(_legacy, family, opset, attention)


def dynamo(family: str, opset: int, attention: str = "sdpa") -> onnx.ModelProto:
    """The torch.export based exporter's model, batch and sequence dynamic."""
    return _exported(_dynamo, family, opset, attention)


def _exported(
    export: Callable[[str, int, str], onnx.ModelProto], family: str, opset: int, attention: str
) -> onnx.ModelProto:
    """Exports take seconds, and several tests begin with the same."""

    def write(path: Path) -> None:
        path.write_bytes(export(family, opset, attention).SerializeToString())

    return onnx.load(once(f"{family}{export.__name__}_{opset}_{attention}.onnx", write))


def _legacy(family: str, opset: int, attention: str) -> onnx.ModelProto:
    module, x = build(family, attention, mask=True), torch.from_numpy(example(family))
    axes = {0: "batch"} if family == "vit" else {0: "batch", 1: "sequence"}
    buffer = io.BytesIO()
    _quietly(
        lambda: torch.onnx.export(
            module, (x,), buffer, dynamo=False, opset_version=opset, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": axes, "y": axes},
        )
    )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def _dynamo(family: str, opset: int, attention: str) -> onnx.ModelProto:
    module, x = build(family, attention), torch.from_numpy(example(family))
    batch, sequence = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("sequence", min=2, max=60)
    shapes = {0: batch} if family == "vit" else {0: batch, 1: sequence}
    program = _quietly(
        lambda: torch.onnx.export(
            module, (x,), dynamo=True, opset_version=opset, dynamic_shapes={"x": shapes},
            input_names=["x"], output_names=["y"], verbose=False,
        )
    )  # fmt: skip
    proto: onnx.ModelProto = program.model_proto
    return proto


def program(proto: onnx.ModelProto) -> Program:
    """The model as an imported program."""
    return program_from_model(ir.from_proto(proto))


def ops(program: Program) -> dict[str, int]:
    """How often each operator occurs, subgraphs included."""
    counts: dict[str, int] = {}
    for graph in program.graphs():
        for node in graph:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
