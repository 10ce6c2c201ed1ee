"""The transformers class and configuration of a checked folder, and the module they make: no remote code."""

from __future__ import annotations

import math
from typing import Any

from ...compiler.errors import ModelError, UnsupportedError, require
from ..stored import same
from .folder import Folder
from .skeleton import Skeleton, first_line, load, quiet_transformers, skeleton


def build(folder: Folder) -> Any:
    """The module of ``folder`` in float32 with its weights, no cache, in evaluation mode.

    Raises: ModelError listing missing and misshapen tensors, for remote code or a configuration that
    does not fit the weights; UnsupportedError for an architecture that transformers does not have.
    """
    transformers = require("transformers", extra="huggingface")
    require("torch", extra="torch")
    with quiet_transformers(transformers):
        config, kind = _checked(folder, transformers)
        return load(kind, config, folder.path.name, folder=str(folder.path))


def build_skeleton(folder: Folder) -> Skeleton | None:
    """The module of ``folder`` without its weights; None if these need more than renaming.

    Raises: as ``build``.
    """
    transformers = require("transformers", extra="huggingface")
    require("torch", extra="torch")
    with quiet_transformers(transformers):
        config, kind = _checked(folder, transformers)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in folder.tensors.items()}

    def equal(one: str, other: str) -> bool:
        return same(folder.tensors[one], folder.tensors[other])

    return skeleton(kind, config, shapes, folder.path.name, equal)


def _checked(folder: Folder, transformers: Any) -> tuple[Any, Any]:
    config = _config(folder, transformers)
    kind = _bare(config, transformers) if folder.bare else None
    kind = kind or _class(config, transformers, folder.path.name)
    held = sum(math.prod(tensor.shape) for tensor in folder.tensors.values())
    check_size(kind, config, held, f"{folder.path.name}/config.json")
    return config, kind


def _config(folder: Folder, transformers: Any) -> Any:
    place = f"{folder.path.name}/config.json"
    known = folder.config.get("model_type") in transformers.CONFIG_MAPPING
    if "auto_map" in folder.config and not known:
        fix = "load the model yourself with trust_remote_code=True and pass the module"
        raise ModelError(place, "the model needs code from its folder (auto_map), which is not run", fix)
    if not known:
        fact = (
            f"transformers {transformers.__version__} has no model type {folder.config.get('model_type')!r}"
        )
        raise UnsupportedError(place, fact, "upgrade transformers, or pass a module in Python")
    try:
        return transformers.AutoConfig.from_pretrained(
            str(folder.path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a wrong field raises whatever its check raises
        raise ModelError(place, f"does not parse: {first_line(error)}", "download the model again") from error


def _class(config: Any, transformers: Any, place: str) -> Any:
    names = getattr(config, "architectures", None) or []
    for name in names:
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    if names:
        fact = f"transformers {transformers.__version__} has no architecture {names[0]!r}"
        raise UnsupportedError(
            f"{place}/config.json", fact, "upgrade transformers, or pass a module in Python"
        )
    found = transformers.MODEL_MAPPING.get(type(config), None)
    if isinstance(found, type):
        return found
    fact = f"names no architecture, and model type {config.model_type!r} has no default"
    raise UnsupportedError(f"{place}/config.json", fact, 'add "architectures" to it')


def _bare(config: Any, transformers: Any) -> Any:
    """The class without a head, of an encoder-decoder its encoder; None if transformers has no default."""
    found = transformers.MODEL_MAPPING.get(type(config), None)
    if not isinstance(found, type) or not getattr(config, "is_encoder_decoder", False):
        return found if isinstance(found, type) else None
    return getattr(transformers, found.__name__.replace("Model", "EncoderModel"), None)


def check_size(kind: Any, config: Any, held: int, place: str) -> None:
    """Refuse a configuration that wants far more than the ``held`` elements, before memory is asked for."""
    import torch

    try:
        with torch.device("meta"):
            declared = sum(p.numel() for p in kind(config).parameters())
    except Exception as error:  # a wrong field raises whatever the layers raise
        raise ModelError(place, f"does not build: {first_line(error)}", "download the model again") from error
    if declared > 2 * held + 10_000_000:
        raise ModelError(
            place, f"declares {declared} parameters, the weights hold {held}", "download it again"
        )
