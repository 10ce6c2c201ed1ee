"""What the caller holds as numpy arrays, and back: numpy, torch, anything with dlpack, plain numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ..compiler.errors import require
from ..compiler.program import TensorSpec
from ..compiler.reference import Array

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def to_numpy(value: object, dtype: ir.DataType) -> Array:
    """``value`` as an array. Numbers and lists take ``dtype`` where that loses nothing; tensors keep theirs.

    Raises: TypeError or ValueError if it can't be one.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if is_torch(value):
        return _from_torch(value)
    if hasattr(value, "__array__"):
        return np.asarray(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    array = np.asarray(value)
    if dtype == ir.DataType.STRING or array.dtype.kind in "UO":
        return array.astype(object) if array.dtype.kind == "U" else array
    wanted = dtype.numpy()
    cast = array.astype(wanted)
    floats = np.issubdtype(array.dtype, np.floating) and wanted.kind not in "biu"
    return cast if floats or array.size == 0 or bool(np.all(cast.astype(array.dtype) == array)) else array


def fitted(arrays: Mapping[str, Any], specs: Iterable[TensorSpec]) -> dict[str, Any]:
    """``arrays`` with floats in the dtypes of ``specs``: a source's for an executable of 16 bits, or back.

    What is no numpy array of floats, and what ``specs`` do not name, stays as it is.
    """
    wanted = {spec.name: spec.dtype.numpy() for spec in specs if spec.dtype in _FLOATS}
    known = {dtype.numpy() for dtype in _FLOATS}
    return {
        name: array.astype(wanted[name], copy=False)
        if name in wanted and isinstance(array, np.ndarray) and array.dtype in known
        else array
        for name, array in arrays.items()
    }


def is_torch(value: object) -> bool:
    """Whether ``value`` is a torch tensor, without importing torch."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _from_torch(value: Any) -> Array:
    value = value.detach().cpu().resolve_conj().resolve_neg()
    if str(value.dtype) == "torch.bfloat16":
        torch: Any = sys.modules["torch"]
        return np.asarray(value.contiguous().view(torch.int16).numpy().view(ir.DataType.BFLOAT16.numpy()))
    return np.asarray(value.numpy())


def from_numpy(array: Array, kind: str) -> object:
    """``array`` as the caller's own kind of tensor, ``"numpy"``, ``"torch"`` or ``"keras"``, sharing memory.

    Raises: ToolError if that framework is not installed.
    """
    if kind == "torch":
        torch = require("torch", extra="torch")
        if array.dtype == ir.DataType.BFLOAT16.numpy():
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array) if array.dtype != object else array
    if kind == "keras":
        return require("keras", extra="keras").ops.convert_to_tensor(array)
    return array


def address_of(array: Array) -> int:
    """Where an array's first element lies in memory."""
    return int(array.__array_interface__["data"][0])
