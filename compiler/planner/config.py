"""The network that a Hugging Face configuration describes, without building a module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ModelError, Problem, UnsupportedError
from .network import EXPERT_KERNELS, KERNELS, PER_LAYER_INPUT_KERNELS, Network

_NAMES: Mapping[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocabulary": ("vocab_size",),
}
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim", "ffn_hidden_size")
_KV = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")

PLAIN = frozenset({
    "gpt2", "opt", "gpt_neox", "gpt_neo", "gptj", "bloom", "falcon", "phi", "starcoder2", "codegen", "mpt",
    "bert", "roberta", "distilbert", "electra", "camembert", "xlm-roberta", "deberta", "deberta-v2", "mpnet",
    "albert", "gpt_bigcode", "stablelm_epoch", "vit", "nomic_bert",
})  # fmt: skip
"""Model types whose feed-forward part has two matrices; those of all others have three (gate, up, down)."""

ENCODERS = ("bert", "roberta", "electra", "mpnet", "albert", "vit", "camembert")
TIED = ("gpt2", "bloom", "gemma", "gemma2", "gemma3_text")
"""Model types whose configuration ties embedding and head without saying so."""

WHOLE = (
    "head_dim", "moe_intermediate_size", "n_shared_experts", "shared_expert_intermediate_size",
    "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "sliding_window",
    "sliding_window_pattern", *_INNER, *_KV, *_CONTEXT, *_EXPERTS, *_ACTIVE,
)  # fmt: skip
"""Fields that are whole numbers where they are given, beside those that have to be."""

LAYERS, SIZES = 10_000, 2**31
"""No model has more layers, and no field is larger."""

AGAIN = "download it again"

NESTED = ("text_config", "language_config", "llm_config")
"""Where multimodal configurations keep their language model's."""


def network_of(config: Mapping[str, Any], name: str, stored: float | None = None) -> Network:
    """The network of a ``config.json``; ``stored``: bytes of its weights where files say.

    Biases and norms, a thousandth of the parameters, are left out. Raises: ModelError listing all fields that
    are missing or impossible; UnsupportedError for an encoder and a decoder together.

    >>> config = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10}
    >>> network_of(config, "tiny").dense
    1024.0
    """
    for key in NESTED:
        if isinstance(config.get(key), Mapping):
            config = {**config, **config[key]}
    if config.get("is_encoder_decoder"):
        fact = "describes an encoder and a decoder, which are not planned together"
        raise UnsupportedError(f"{name}/config.json", fact, "give a decoder or an encoder alone")
    _check_types(config, f"{name}/config.json")
    hidden, layers, heads, vocabulary = _sizes(config, name)
    kind = str(config.get("model_type", ""))
    kv_heads = _kv_heads(config, kind, heads)
    width = int(config.get("head_dim") or hidden // heads)
    experts, active = _first(config, _EXPERTS) or 0, _first(config, _ACTIVE) or 0
    _check(f"{name}/config.json", heads, kv_heads, hidden, width)
    if experts and not 1 <= active <= experts:
        raise ModelError(f"{name}/config.json", f"a token takes {active} of {experts} experts", AGAIN)
    inner = _first(config, _INNER) or 4 * hidden
    narrow = int(config.get("moe_intermediate_size") or inner) if experts else inner
    kv_width, attention = 2 * kv_heads * width, float(hidden * width * (heads + kv_heads) * 2)
    if config.get("kv_lora_rank"):
        kv_width, attention = _latent(config, hidden, heads)
    matrix = (2 if kind in PLAIN else 3) * hidden
    shared = int(config.get("n_shared_experts") or 0) * narrow
    shared += int(config.get("shared_expert_intermediate_size") or 0)
    decoder = _decodes(config, kind)
    embedding = float(vocabulary * hidden)
    windowed, window = _windows(config, layers)
    extra = PER_LAYER_INPUT_KERNELS if config.get("hidden_size_per_layer_input") else 0
    return Network(
        name=name,
        kind="decoder" if decoder else "encoder",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_width=width,
        kv_width=kv_width if decoder else 0,
        inner=narrow,
        vocabulary=vocabulary,
        dense=attention + (hidden * experts + matrix * shared if experts else matrix * inner),
        expert=float(matrix * narrow) if experts else 0.0,
        experts=experts,
        active=active,
        embedding=embedding,
        head=embedding if decoder else 0.0,
        tied=bool(config.get("tie_word_embeddings", kind in TIED)),
        context=_first(config, _CONTEXT),
        window=window,
        windowed=windowed,
        kernels=KERNELS + extra + (EXPERT_KERNELS if experts else 0),
        stored=stored,
    )


def _sizes(config: Mapping[str, Any], name: str) -> tuple[int, int, int, int]:
    """Width, layers, heads, vocabulary. Raises: ModelError listing what is missing."""
    read = {key: _first(config, names) for key, names in _NAMES.items()}
    missing = [
        Problem(
            f"{name}/config.json",
            f"has no {' or '.join(_NAMES[key])}",
            "give the model as ONNX or GGUF: a plan needs it",
        )
        for key, found in read.items()
        if found is None
    ]
    if missing:
        raise ModelError.of(missing)
    hidden, layers, heads, vocabulary = (found or 0 for found in read.values())
    return hidden, layers, heads, vocabulary


def _check_types(config: Mapping[str, Any], place: str) -> None:
    """Raises: ModelError listing the fields that are no whole numbers, or beyond all that exists."""
    wrong = []
    for key in (*WHOLE, *(name for names in _NAMES.values() for name in names)):
        found = config.get(key)
        if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found < 0):
            wrong.append(Problem(f"{place}: {key!r}", f"is {found!r}, not a whole number", AGAIN))
        elif found is not None and found > (LAYERS if key in _NAMES["layers"] else SIZES):
            wrong.append(Problem(f"{place}: {key!r}", f"is {found:,}, more than any model has", AGAIN))
    if wrong:
        raise ModelError.of(wrong)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        found = config.get(name)
        if isinstance(found, int) and not isinstance(found, bool) and found > 0:
            return found
    return None


def _kv_heads(config: Mapping[str, Any], kind: str, heads: int) -> int:
    one = bool(config.get("multi_query"))
    if kind in ("falcon", "gpt_bigcode") and one and not config.get("new_decoder_architecture"):
        return 1
    return _first(config, _KV) or (1 if one else heads)


def _check(place: str, heads: int, kv_heads: int, hidden: int, width: int) -> None:
    wrong = []
    if heads % kv_heads:
        wrong.append(Problem(place, f"{kv_heads} key heads do not divide {heads} heads", AGAIN))
    if not width:
        wrong.append(Problem(place, f"{heads} heads share {hidden} numbers", AGAIN))
    if wrong:
        raise ModelError.of(wrong)


def _latent(config: Mapping[str, Any], hidden: int, heads: int) -> tuple[int, float]:
    """Cached numbers of a token and parameters of multi-head latent attention (arXiv 2405.04434)."""
    latent, rotary = int(config["kv_lora_rank"]), int(config.get("qk_rope_head_dim") or 0)
    plain, value = int(config.get("qk_nope_head_dim") or 0), int(config.get("v_head_dim") or 0)
    rank = int(config.get("q_lora_rank") or 0)
    queries = heads * (plain + rotary)
    asked = rank * (hidden + queries) if rank else hidden * queries
    kept = hidden * (latent + rotary) + latent * heads * (plain + value)
    return latent + rotary, float(asked + kept + heads * value * hidden)


def _decodes(config: Mapping[str, Any], kind: str) -> bool:
    architectures = " ".join(map(str, config.get("architectures") or ()))
    if "CausalLM" in architectures or "LMHead" in architectures:
        return True
    return not any(part in kind for part in ENCODERS)


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int, int | None]:
    """How many layers attend to a window only, and its tokens."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or config.get("use_sliding_window") is False:
        return 0, None
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return sum(str(kind).startswith("sliding") for kind in kinds), window
    every = config.get("sliding_window_pattern")
    return (layers - layers // every if isinstance(every, int) and every else layers), window
