"""A module that holds the weights of one layer at a time: each is read when its layer runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...compiler.reference import Array
from .skeleton import Skeleton

LARGE = 1 << 30
"""Bytes of float32 weights from which a reference is streamed."""


def is_large(empty: Skeleton) -> bool:
    """Whether the weights should not be in memory all at once."""
    return bool(sum(p.numel() * 4 for p in empty.module.parameters()) > LARGE)


def stream(empty: Skeleton, read: Callable[[str], Array]) -> Any:
    """The module of ``empty``, whose layers ``read`` their weights by the stored tensor's name as they run.

    A parameter that is used by another module than its own is not there then: it is all NaN, and so is what
    is computed from it.
    """
    import torch

    absent = torch.full((1,), math.nan)

    def tensor(name: str, dtype: Any) -> Any:
        return torch.from_numpy(read(name)).to(dtype)

    for module in empty.module.modules():
        own = {
            key: empty.sources[parameter.data_ptr()]
            for key, parameter in module.named_parameters(recurse=False)
            if parameter.data_ptr() in empty.sources
        }
        for key, buffer in module.named_buffers(recurse=False):
            if buffer.data_ptr() in empty.sources:
                setattr(module, key, tensor(empty.sources[buffer.data_ptr()], buffer.dtype))
        if own:
            _hook(module, own, tensor, absent)
    for parameter in empty.module.parameters():
        parameter.data = absent.to(parameter.dtype).expand(parameter.shape)
    return empty.module


def _hook(module: Any, own: dict[str, str], tensor: Callable[[str, Any], Any], absent: Any) -> None:
    def load(module: Any, args: Any) -> None:
        for key, name in own.items():
            parameter = getattr(module, key)
            parameter.data = tensor(name, parameter.dtype)

    def drop(module: Any, args: Any, result: Any) -> None:
        for key in own:
            parameter = getattr(module, key)
            parameter.data = absent.to(parameter.dtype).expand(parameter.shape)

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
