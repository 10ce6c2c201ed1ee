"""Build the transformers module of a checked folder: no network, no remote code, no pickle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...compiler.errors import ModelError, Problem, UnsupportedError, require
from .folder import Folder


def build(folder: Folder) -> Any:
    """The module of ``folder`` in float32 with its weights, no cache, in evaluation mode.

    Raises: ModelError listing missing and misshapen tensors, for remote code or a configuration that
    does not fit the weights; UnsupportedError for an architecture that transformers does not have.
    """
    transformers = require("transformers", extra="huggingface")
    torch = require("torch", extra="torch")
    place = folder.path.name
    with _silent(transformers):
        config = _config(folder, transformers)
        kind = _class(config, transformers, place)
        _check_size(folder, kind, config, torch)
        try:
            model, info = kind.from_pretrained(
                str(folder.path),
                config=config,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises errors of many kinds
            raise ModelError(place, f"transformers can't load it: {_first(error)}") from error
    wrong = [Problem(place, f"weights lack tensor {key!r}") for key in sorted(info["missing_keys"])]
    wrong += [
        Problem(place, f"tensor {key!r} is {list(found)}, the configuration wants {list(wanted)}")
        for key, found, wanted in sorted(info["mismatched_keys"])
    ]
    if wrong:
        raise ModelError.of(wrong)
    if getattr(model.config, "use_cache", None):
        model.config.use_cache = False
    return model.eval()


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
        raise ModelError(place, f"does not parse: {_first(error)}", "download the model again") from error


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
    return transformers.AutoModel


def _check_size(folder: Folder, kind: Any, config: Any, torch: Any) -> None:
    """Refuse a configuration whose sizes are far from the weights', before memory is asked for."""
    place = f"{folder.path.name}/config.json"
    try:
        with torch.device("meta"):
            build_empty = getattr(kind, "from_config", None) or kind
            declared = sum(p.numel() for p in build_empty(config).parameters())
    except Exception as error:  # a wrong field raises whatever the layers raise
        raise ModelError(place, f"does not build: {_first(error)}", "download the model again") from error
    held = 0
    for shape in folder.shapes.values():
        size = 1
        for dim in shape:
            size *= dim
        held += size
    if declared > 2 * held + 10_000_000:
        raise ModelError(
            place, f"declares {declared} parameters, the weights hold {held}", "download it again"
        )


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:240]


@contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """No progress bars or load reports on the user's terminal."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(50)
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
