"""Every tensor of a model file: its declared shape and its data must agree, wherever the data lies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from ...compiler.errors import ModelError, Problem
from .external import ExternalData

if TYPE_CHECKING:
    import onnx

MAX_ELEMENTS = 2**48
"""A declared size beyond this is an error or an attack: no machine holds it."""

_TYPED = {
    "float_data": {"FLOAT", "COMPLEX64"},
    "double_data": {"DOUBLE", "COMPLEX128"},
    "int64_data": {"INT64"},
    "uint64_data": {"UINT64", "UINT32"},
}


def check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Check all tensors without reading their data, and point external ones at their resolved files.

    Raises: ModelError with every tensor whose dtype, shape, length or file is wrong.
    """
    external = ExternalData(path)
    found = []
    for tensor in _tensors(proto):
        wrong = _problem(tensor, external)
        if wrong is not None:
            found.append(Problem(f"{path}: tensor {tensor.name!r}", *wrong))
    if found:
        raise ModelError.of(found)


def _problem(tensor: onnx.TensorProto, external: ExternalData) -> tuple[str, str] | None:
    again = "export the model again"
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        return f"has unknown dtype {tensor.data_type}", again
    if dtype == ir.DataType.UNDEFINED:
        return "has no dtype", again
    if any(size < 0 for size in tensor.dims):
        return f"has a negative size in {list(tensor.dims)}", again
    elements = math.prod(tensor.dims)
    if max(elements, *tensor.dims, 0) > MAX_ELEMENTS:
        return f"declares {list(tensor.dims)}, more than any machine holds", again
    if tensor.HasField("segment"):
        return "is stored in segments, which no tool writes", again
    bits = 0 if dtype == ir.DataType.STRING else dtype.bitwidth
    if tensor.data_location == tensor.EXTERNAL:
        if dtype == ir.DataType.STRING:
            return "holds strings in external data", "store strings in the model"
        return external.problem(tensor, (elements * bits + 7) // 8)
    held, needed, unit = _held(tensor, dtype, elements)
    if held != needed:
        what = f"{dtype.name}{list(tensor.dims)}"
        return f"declares {what}, {needed:,} {unit}, but holds {held:,}", again
    return None


def _held(tensor: onnx.TensorProto, dtype: ir.DataType, elements: int) -> tuple[int, int, str]:
    """What the tensor holds, what it should hold, and of what: bytes of raw data, or values of its field."""
    if dtype == ir.DataType.STRING:
        return len(tensor.string_data), elements, "strings"
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), (elements * dtype.bitwidth + 7) // 8, "bytes"
    field = next((name for name, kinds in _TYPED.items() if dtype.name in kinds), "int32_data")
    values = elements * (2 if dtype.name in ("COMPLEX64", "COMPLEX128") else 1)
    if dtype.bitwidth < 8:  # packed into bytes, one byte a value
        values = math.ceil(elements * dtype.bitwidth / 8)
    return len(getattr(tensor, field)), values, "values"


def _tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """All tensors below a model, graph, function or node, in file order."""
    graph = message.graph if hasattr(message, "graph") else message
    yield from getattr(graph, "initializer", ())
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for owner in (graph, *getattr(message, "functions", ())):
        for node in owner.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
                yield from attribute.tensors
                for sub in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    yield from _tensors(sub)
