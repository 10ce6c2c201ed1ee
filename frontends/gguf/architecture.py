"""Architectures of GGUF files: their names for tensors and settings in transformers' terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...compiler.errors import ModelError, UnsupportedError
from .header import AGAIN, Header

_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_AROUND = {
    "ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_RMS = "attention.layer_norm_rms_epsilon"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One value of ``general.architecture``.

    ``layer``: stem of a tensor's name in a block → in transformers' layer. ``settings``: further metadata →
    field of the configuration. ``interleaved``: rows of q and k are stored in the order that rotates
    neighbours. ``norm_shift``: added to norm weights, which the file has one higher. ``epsilon``: where the
    norms' epsilon stands, and its field. ``windows``: every how many layers one attends without a window.
    """

    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    settings: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    norm_shift: float = 0.0
    epsilon: tuple[str, str] = (_RMS, "rms_norm_eps")
    windows: int = 0

    def names(self, layers: int) -> dict[str, str]:
        """The file's name of every tensor there may be → transformers'."""
        stems = {**_OUTER}
        for i in range(layers):
            stems |= {f"blk.{i}.{old}": f"model.layers.{i}.{new}" for old, new in self.layer.items()}
        return {f"{o}.{end}": f"{n}.{end}" for o, n in stems.items() for end in ("weight", "bias")}


_WINDOW = {"attention.sliding_window": "sliding_window"}
_SOFTCAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"
}  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", interleaved=True),
    "smollm3": Architecture("smollm3", interleaved=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", {**_LAYER, **_HEAD_NORMS}),
    "gemma": Architecture("gemma", norm_shift=-1.0),
    "gemma2": Architecture(
        "gemma2", {**_LAYER, **_AROUND}, {**_WINDOW, **_SOFTCAPS}, norm_shift=-1.0, windows=2
    ),
    "gemma3": Architecture(
        "gemma3_text",
        {**_LAYER, **_AROUND, **_HEAD_NORMS},
        {**_WINDOW, **_SOFTCAPS},
        norm_shift=-1.0,
        windows=6,
    ),
    "olmo2": Architecture("olmo2", {**_LAYER, **_AROUND, **_HEAD_NORMS}),
    "phi3": Architecture(
        "phi3", {**_LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}, _WINDOW
    ),
    "starcoder2": Architecture(
        "starcoder2",
        {**_LAYER, "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
        epsilon=("attention.layer_norm_epsilon", "norm_epsilon"),
    ),
}
"""By the file's ``general.architecture``."""

IGNORED = ("rope_freqs.weight", ".attn_rot_embd")
"""Ends of names of tensors that are not parameters: rotary factors, which are read apart."""


def architecture_of(header: Header) -> tuple[str, Architecture]:
    """The file's architecture.

    Raises: ModelError if it names none; UnsupportedError if it is unknown, or the file a part of a model.
    """
    parts = header.metadata.get("split.count", 1)
    if parts not in (0, 1):
        fix = "merge the parts with llama-gguf-split --merge"
        raise UnsupportedError(header.path.name, f"is one of {str(parts)[:20]} parts of a model", fix)
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise ModelError(header.path.name, "names no general.architecture", AGAIN)
    found = ARCHITECTURES.get(name)
    if found is None:
        known = ", ".join(ARCHITECTURES)
        fact = f"architecture {name!r} has no translation"
        raise UnsupportedError(header.path.name, fact, f"give one of {known}, or the Hugging Face folder")
    if header.metadata.get(f"{name}.expert_count"):
        fact = "is a mixture of experts, which has no translation"
        raise UnsupportedError(header.path.name, fact, "give the Hugging Face folder")
    return name, found
