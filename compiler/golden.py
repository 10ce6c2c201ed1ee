"""Golden data: a run of the source framework, inputs and outputs, in one .npz file without pickle."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .program import TensorSpec
from .reference import Array, Arrays


def dumps(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> bytes:
    """The .npz file of ``inputs`` and ``outputs``; the items of an ONNX sequence are numbered."""
    buffer = io.BytesIO()
    arrays = dict(_members("inputs", inputs)) | dict(_members("outputs", outputs))
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def loads(data: bytes, specs: Sequence[TensorSpec]) -> tuple[Arrays, dict[str, Any]]:
    """Inputs, in the dtypes of ``specs``, and outputs; a sequence is a list.

    Raises: whatever zipfile and numpy raise for damaged data.
    """
    tensors: dict[str, dict[str, Any]] = {"inputs": {}, "outputs": {}}
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        for key in file.files:
            kind, _, name = key.partition("/")
            kind, _, index = kind.partition(".")
            array = _restored(file[key])
            if index:
                tensors[kind].setdefault(name, []).append(array)
            else:
                tensors[kind][name] = array
    for spec in specs:
        if spec.name in tensors["inputs"] and spec.dtype != ir.DataType.STRING:
            tensors["inputs"][spec.name] = tensors["inputs"][spec.name].astype(spec.dtype.numpy(), copy=False)
    return tensors["inputs"], tensors["outputs"]


def _members(kind: str, tensors: Mapping[str, Any]) -> Iterator[tuple[str, Array]]:
    for name, value in tensors.items():
        if isinstance(value, (list, tuple)):
            yield from ((f"{kind}.{index}/{name}", _storable(np.asarray(v))) for index, v in enumerate(value))
        else:
            yield f"{kind}/{name}", _storable(np.asarray(value))


def _storable(array: Array) -> Array:
    """``array`` in a dtype that .npz files know: text as unicode, bfloat16 and smaller floats as float32."""
    if array.dtype == object:
        return array.astype(np.str_)
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


def _restored(array: Array) -> Array:
    return array.astype(object) if array.dtype.kind == "U" else array
