"""Example inputs that a model accepts: indices inside their tables, masks of ones, sizes in range."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from ..program import Program, TensorSpec
from ..reference import Array, Arrays
from .constants import scalar
from .sizes import concrete_shape, resolve_sizes


def example_inputs(
    program: Program, entry: str = "main", sizes: Mapping[str, int] | None = None, seed: int = 0
) -> Arrays:
    """Random inputs for an entry, by name; the same for the same ``seed``.

    Floats are N(0, 1). Integers used as indices lie inside the smallest table they index. Masks (by name,
    or integers that are only cast to float or bool) are ones, positions count up, other integers are small.

    Raises: InputError if ``sizes`` does not fit the entry's dimensions.
    """
    resolved = resolve_sizes(program, entry, sizes)
    values = {v.name: v for v in program.entries[entry].graph.inputs}
    return {
        spec.name: _example(
            spec, values[spec.name], resolved, np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
        )
        for spec in program.inputs(entry)
    }


def index_limit(program: Program, name: str, entry: str = "main") -> int | None:
    """Rows of the smallest table that the input ``name`` indexes; None if it indexes none of known size."""
    values = {v.name: v for v in program.entries[entry].graph.inputs}
    return min(_index_bounds(values[name], {}), default=None)


def _example(spec: TensorSpec, value: ir.Value, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    shape = concrete_shape(spec, sizes)
    name, dtype = spec.name.lower(), spec.dtype
    if dtype == ir.DataType.STRING:
        return np.full(shape, "text", dtype=object)
    if dtype == ir.DataType.BOOL:
        return np.ones(shape, np.bool_)
    if dtype.is_floating_point():
        return (
            np.ones(shape).astype(dtype.numpy())
            if "mask" in name
            else _normal(shape, rng).astype(dtype.numpy())
        )
    if not dtype.is_integer():
        return (_normal(shape, rng) + 1j * _normal(shape, rng)).astype(dtype.numpy())
    bounds = list(_index_bounds(value, sizes))
    if bounds:
        limit = max(1, min(bounds))
        if "position" in name and shape:
            return np.broadcast_to(np.arange(shape[-1]) % limit, shape).astype(dtype.numpy())
        return rng.integers(0, limit, shape).astype(dtype.numpy())
    if "mask" in name or _only_cast(value):
        return np.ones(shape, dtype.numpy())
    return rng.integers(0, 2 if "type" in name else 5, shape).astype(dtype.numpy())


def _normal(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    return rng.standard_normal(shape)


_FORWARD: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Slice", "Transpose"), (0,)),
    **dict.fromkeys(("Expand", "Flatten", "Split", "Tile", "Clip", "Pad"), (0,)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), (0,)),
    **dict.fromkeys(("ScatterND", "ScatterElements"), (0, 2)),
    "Where": (1, 2),
    "Concat": tuple(range(64)),
}
"""Operators whose output holds elements of an input, and which inputs those are."""


def _index_bounds(value: ir.Value, sizes: Mapping[str, int]) -> Iterator[int]:
    seen = {value}
    pending = [(value, 0)]
    while pending:
        current, offset = pending.pop()
        for node, index in current.uses():
            bound = _table_size(node, index, sizes)
            if bound is not None:
                yield bound - offset
            elif (
                node.domain == ""
                and node.outputs[0] not in seen
                and (shift := _shift(node, index)) is not None
            ):
                seen.update(node.outputs)
                pending.extend((output, offset + shift) for output in node.outputs)


def _shift(node: ir.Node, index: int) -> int | None:
    """What ``node`` adds to the elements of its input; None if it computes something else of them."""
    if index in _FORWARD.get(node.op_type, ()):
        return 0
    if node.op_type in ("Add", "Sub") and (node.op_type == "Add" or index == 0):
        added = scalar(node.inputs[1 - index])
        if isinstance(added, int):
            return added if node.op_type == "Add" else 0
    return None


def _table_size(node: ir.Node, index: int, sizes: Mapping[str, int]) -> int | None:
    """Size of the axis that input ``index`` of ``node`` selects from, if it is an index."""
    if node.op_type == "OneHot" and index == 0:
        classes = scalar(node.inputs[1])
        return None if classes is None else int(classes)
    if node.op_type == "EmbedLayerNormalization" and index in (0, 1, 8):
        return _axis_size(node.inputs[{0: 2, 1: 4, 8: 3}[index]], 0, sizes)
    if index != 1:
        return None
    if node.op_type in ("Gather", "GatherElements", "ScatterElements", "Scatter"):
        return _axis_size(node.inputs[0], node.attributes.get_int("axis", 0), sizes)
    if node.op_type in ("GatherND", "ScatterND"):
        first = node.attributes.get_int("batch_dims", 0)
        indices = node.inputs[1]
        depth = indices.shape[-1] if indices is not None and indices.shape else 1
        axes = range(first, first + (depth if isinstance(depth, int) else 1))
        found = [size for axis in axes if (size := _axis_size(node.inputs[0], axis, sizes)) is not None]
        return min(found, default=None)
    return None


def _axis_size(table: ir.Value | None, axis: int, sizes: Mapping[str, int]) -> int | None:
    if table is None or table.shape is None or not -len(table.shape) <= axis < len(table.shape):
        return None
    dim = table.shape[axis]
    return dim if isinstance(dim, int) else sizes.get(str(dim.value))


def _only_cast(value: ir.Value) -> bool:
    """Whether the integers end as float or bool factors, as attention masks do."""
    pending, seen, cast = [value], {value}, False
    while pending:
        for node, index in pending.pop().uses():
            if node.op_type == "Cast" and not ir.DataType(node.attributes.get_int("to", 1)).is_integer():
                cast = True
            elif index in _FORWARD.get(node.op_type, ()):
                fresh = [o for o in node.outputs if o not in seen]
                seen.update(fresh)
                pending.extend(fresh)
    return cast
