"""A sentence-transformers folder: which modules lie behind the transformer, how texts are prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...compiler.errors import ModelError, Problem, UnsupportedError
from .folder import inside, read_json

LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Fields of older configurations and the pooling each switches on; several are concatenated in this order."""

ACTIVATIONS = ("Tanh", "Identity", "ReLU", "GELU", "Sigmoid", "SiLU")
"""Classes of torch.nn that a dense layer may name."""


@dataclass(frozen=True, slots=True)
class Step:
    """One module behind the transformer: its kind, its folder, its configuration."""

    kind: str
    folder: Path
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence-transformers model: the modules behind the transformer, and how texts are prepared.

    ``length``: most tokens of a text, None for the tokenizer's. ``prompts``, ``prompt``: as ``TextTask``.
    """

    steps: tuple[Step, ...]
    length: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""


def read_sentence(path: Path) -> Sentence | None:
    """What the modules.json at ``path`` lists; None if there is none.

    Raises: ModelError for a malformed list; UnsupportedError naming modules that can't be built.
    """
    if not (path / "modules.json").is_file():
        return None
    listed = read_json(path / "modules.json")
    steps, start = [], path
    for module in listed if isinstance(listed, list) else ():
        if not isinstance(module, dict):
            continue
        kind = str(module.get("type", "")).rpartition(".")[2]
        folder = inside(path, str(module.get("path", "")))
        if kind == "Transformer":
            start = folder
        else:
            steps.append(Step(kind, folder, _optional(folder / "config.json")))
    wrong = [Problem(f"{path.name}/modules.json", fact) for step in steps for fact in _refusals(step)]
    if not wrong and (not steps or steps[0].kind != "Pooling"):
        wrong = [Problem(f"{path.name}/modules.json", "lists no pooling behind the transformer")]
    if wrong:
        raise UnsupportedError.of(wrong)
    settings = _optional(start / "sentence_bert_config.json")
    options = _optional(path / "config_sentence_transformers.json")
    given = options.get("prompts")
    prompts = {k: v for k, v in given.items() if isinstance(v, str)} if isinstance(given, dict) else {}
    length = settings.get("max_seq_length")
    return Sentence(
        tuple(steps),
        length if isinstance(length, int) and length > 0 else None,
        settings.get("do_lower_case") is True,
        prompts,
        str(options.get("default_prompt_name") or ""),
    )


def _optional(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ModelError(f"{path.parent.name}/{path.name}", "is no JSON object", "download the model again")
    return found


def _refusals(step: Step) -> list[str]:
    """Why a step can't be built."""
    if step.kind in ("Normalize", "Dropout"):
        return []
    if step.kind == "Pooling":
        unknown = sorted(set(modes(step.config)) - set(LEGACY.values()))
        facts = [f"pools by {mode!r}, which has no implementation" for mode in unknown]
        if step.config.get("include_prompt") is False:
            facts.append("leaves the prompt out of the pooling, which has no implementation")
        return facts
    if step.kind == "Dense":
        name = activation(step.config)
        return [] if name in ACTIVATIONS else [f"names activation {name!r}, which has no implementation"]
    return [f"lists a module {step.kind!r}, which has no implementation"]


def modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the poolings a Pooling module's configuration asks for."""
    given = config.get("pooling_mode")
    if given is not None:
        return (given,) if isinstance(given, str) else tuple(map(str, given))
    return tuple(mode for field, mode in LEGACY.items() if config.get(field)) or ("mean",)


def activation(config: Mapping[str, Any]) -> str:
    """The class of torch.nn that a Dense module's configuration names."""
    return str(config.get("activation_function", "Tanh")).rpartition(".")[2]
