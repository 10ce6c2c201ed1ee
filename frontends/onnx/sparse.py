"""Sparse constants of a model file, made dense: no backend computes with them, the IR does not hold them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ...compiler.errors import ModelError, Problem

if TYPE_CHECKING:
    import onnx

MAX_ELEMENTS = 2**28
"""A sparse constant with more elements than this when dense is refused."""


def make_dense(proto: onnx.ModelProto, place: str) -> None:
    """Replace sparse initializers and ``sparse_value`` attributes by dense ones, in place.

    Raises: ModelError with every sparse constant whose indices do not fit its shape, or that is too large.
    """
    found: list[Problem] = []
    for owner in _owners(proto.graph, *proto.functions):
        for sparse in getattr(owner, "sparse_initializer", ()):
            where = f"{place}: sparse tensor {sparse.values.name!r}"
            _store(sparse, owner.initializer.add(), where, found)
        if hasattr(owner, "sparse_initializer"):
            del owner.sparse_initializer[:]
        for node in owner.node:
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor") and attribute.name == "sparse_value":
                    _store(attribute.sparse_tensor, attribute.t, f"{place}: node {node.name!r}", found)
                    attribute.ClearField("sparse_tensor")
                    attribute.name, attribute.type = "value", 4
    if found:
        raise ModelError.of(found)


def _store(
    sparse: onnx.SparseTensorProto, target: onnx.TensorProto, where: str, found: list[Problem]
) -> None:
    from onnx import numpy_helper

    shape = tuple(sparse.dims)
    again = "export the model again"
    if any(size < 0 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        found.append(Problem(where, f"declares {list(shape)}, too large to be made dense", again))
        return
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    flat = _linear(indices, shape)
    if flat is None or values.ndim != 1 or flat.shape != values.shape:
        found.append(Problem(where, f"has indices that do not fit its shape {list(shape)}", again))
        return
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[flat] = values
    target.CopyFrom(numpy_helper.from_array(dense.reshape(shape), sparse.values.name))


def _linear(indices: np.ndarray[Any, Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
    """Positions in the flattened tensor; None if any lies outside."""
    if indices.dtype != np.int64:
        return None
    if indices.ndim == 2 and indices.shape[1] == len(shape):
        if not len(indices):
            return indices.reshape(-1)[:0]
        if (indices < 0).any() or (indices >= np.array(shape)).any():
            return None
        return np.ravel_multi_index(tuple(indices.T), shape) if shape else None
    if indices.ndim == 1 and not ((indices < 0) | (indices >= math.prod(shape))).any():
        return indices
    return None


def _owners(*roots: Any) -> list[Any]:
    found = list(roots)
    for owner in found:
        for node in owner.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.HasField("g") else []
                found += attribute.graphs
    return found
