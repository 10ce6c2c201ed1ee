"""Calls that a kernel takes for one row at a time: cut into rows, and their outputs put together."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..compiler.errors import InputError
from ..compiler.manifest import ROW_BY_ROW, Variant
from ..compiler.program import TensorSpec


def is_row_by_row(variant: Variant) -> bool:
    """Whether a run takes several tokens of one row only, but for prompts that fill the capacity."""
    return variant.settings.get(ROW_BY_ROW) == "1"


def rows_of(inputs: Mapping[str, Any], specs: Sequence[TensorSpec], tokens: str) -> list[dict[str, Any]]:
    """``inputs`` of each row, if there are several of several ``tokens`` each; nothing otherwise.

    What has the rows of ``tokens`` on its first axis, by the name of that dimension, is sliced.
    Raises: InputError for tensors that nothing loaded can put together again.
    """
    rows, columns = inputs[tokens].shape
    if rows < 2 or columns < 2:
        return []
    if "torch" not in sys.modules and not all(isinstance(value, np.ndarray) for value in inputs.values()):
        fact = f"are {columns} of each of {rows} rows: the attention kernel takes several of one row only"
        raise InputError(
            tokens, fact, "give them row by row, or import torch, which joins them on the device"
        )
    own = next(spec for spec in specs if spec.name == tokens).shape
    sliced = {spec.name for spec in specs if own and spec.shape and spec.shape[0] == own[0]}
    return [
        {name: value[row : row + 1] if name in sliced else value for name, value in inputs.items()}
        for row in range(rows)
    ]


def joined(outputs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Outputs of rows one behind the other: arrays as an array, torch tensors as a tensor where they lie."""
    return {name: _joined([each[name] for each in outputs]) for name in outputs[0]}


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return sys.modules["torch"].cat(list(parts))
