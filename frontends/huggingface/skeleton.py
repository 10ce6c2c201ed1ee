"""A transformers module without its weights: memory that is never touched stands for each stored tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...compiler.errors import ModelError, Problem
from ..pytorch.weights import Weight


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A module in evaluation mode whose buffers are real and whose parameters are not.

    ``sources``: address of a parameter → name of the stored tensor that holds its values, unchanged.
    ``placeholders`` keep these addresses from being used again.
    """

    module: Any
    sources: dict[int, str]
    placeholders: tuple[Any, ...]

    def weights(self, tensors: Mapping[str, Weight]) -> dict[int, Weight]:
        """The stored ``tensors`` by the address of the parameter they belong to."""
        return {address: tensors[name] for address, name in self.sources.items()}


def skeleton(
    kind: Any,
    config: Any,
    shapes: Mapping[str, tuple[tuple[int, ...], ir.DataType]],
    place: str,
    equal: Callable[[str, str], bool] = lambda one, other: False,
    spell: Callable[[str], str] = str,
) -> Skeleton | None:
    """The module ``kind(config)`` loaded by transformers' own rules from tensors without contents.

    ``shapes``: shape and dtype of every stored tensor; floats become float32. None if a parameter is made
    from stored tensors by more than renaming, which needs their contents. ``equal`` says whether two stored
    tensors that the configuration wants tied hold the same, ``spell`` what errors call a parameter.
    Raises: ModelError listing tensors that are missing or of another shape than the configuration wants.
    """
    import torch
    import transformers

    state, names = {}, {}
    for number, (name, (shape, dtype)) in enumerate(shapes.items()):
        wanted = torch.float32 if dtype.is_floating_point() else getattr(torch, dtype.name.lower())
        tensor = state[name] = torch.empty(shape, dtype=wanted)
        if math.prod(shape):
            names[tensor.data_ptr()] = name
            if dtype.is_floating_point():
                tensor.view(-1)[0] = (
                    number  # transformers ties equal tensors: these tell nothing, so none are
                )
    with quiet_transformers(transformers):
        module = load(kind, config, place, state, spell=spell)
    _tie(module, names, equal)
    held = {t.data_ptr() for t in module.state_dict(keep_vars=True).values() if t.numel()}
    if not held <= names.keys() or any(isinstance(part, torch.nn.RNNBase) for part in module.modules()):
        return None
    return Skeleton(module, {address: names[address] for address in held}, tuple(state.values()))


def _tie(module: Any, names: Mapping[int, str], equal: Callable[[str, str], bool]) -> None:
    """Tie parameters that are stored twice and should be one."""
    for target, source in module.get_expanded_tied_weights_keys(all_submodels=True).items():
        one, other = module.get_parameter(source), module.get_parameter(target)
        first, second = names.get(one.data_ptr()), names.get(other.data_ptr())
        if one is not other and first is not None and second is not None and equal(first, second):
            parent, _, leaf = target.rpartition(".")
            setattr(module.get_submodule(parent), leaf, one)


def load(
    kind: Any,
    config: Any,
    place: str,
    state: Any = None,
    folder: str | None = None,
    spell: Callable[[str], str] = str,
) -> Any:
    """``kind`` in float32 without a cache, from a state dict or a folder's safetensors.

    Raises: ModelError listing missing and misshapen tensors, or saying why transformers can't load it.
    """
    import torch

    try:
        module, info = kind.from_pretrained(
            folder,
            config=config,
            **({"state_dict": state} if folder is None else {"use_safetensors": True}),
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises errors of many kinds
        raise ModelError(place, f"transformers can't load it: {first_line(error)}") from error
    wrong = [Problem(place, f"weights lack tensor {spell(key)!r}") for key in sorted(info["missing_keys"])]
    wrong += [
        Problem(place, f"tensor {spell(key)!r} is {list(found)}, the configuration wants {list(wanted)}")
        for key, found, wanted in sorted(info["mismatched_keys"])
    ]
    if wrong:
        raise ModelError.of(wrong)
    if getattr(module.config, "use_cache", None):
        module.config.use_cache = False
    return module.eval()


def first_line(error: Exception) -> str:
    """The first line of what an exception says, or its type's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:240]


@contextmanager
def quiet_transformers(transformers: Any) -> Iterator[None]:
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
