"""Indices into an axis, counted from its front, and refused while it runs if they lie outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .kernels.build import Body, prim_func
from .lowering import Lowering, all_known


def checked(b: Lowering, node: ir.Node, indices: ir.Value, sizes: Sequence[Any]) -> Any:
    """The indices, all between 0 and the sizes of the axes they are for; negative ones count from the end.

    With several sizes the last dimension of the indices names an axis each. On a GPU, which can't refuse,
    indices outside become the nearest inside.
    """
    known = b.array(indices)
    if known is not None and not known.size:
        return b.value(indices)
    if known is not None and all_known(sizes):
        ends = np.array(sizes if len(sizes) > 1 else sizes[0])
        if ((known >= -ends) & (known < ends)).all():
            return b.weight(ir.Tensor(np.where(known < 0, known + ends, known).astype(np.int64)))
    found = b.value(indices)
    if b.cpu is None:
        return b.compute(lambda at, ends: _nearest(b, at, ends), found, b.prims(sizes), name="nearest")
    from .rules.integers import sizes_as_tensor
    from .rules.products import reshaped

    own, width = b.shape(found), len(sizes)
    rows = b.simplified(math.prod(own[:-1] if width > 1 else own))
    kernel = _check(f"node {node.name!r} ({node.op_type})", str(found.ty.dtype))
    ends = sizes_as_tensor(b, list(sizes))
    flat = b.call(kernel, [reshaped(b, found, [rows, width]), ends], [rows, width], "int64")
    return reshaped(b, flat, own)


def _check(place: str, dtype: str) -> Any:
    """indices[rows, axes], sizes int64[axes] → int64[rows, axes]. Raises: RuntimeError where it runs."""

    def body(b: Body) -> None:
        rows, axes = b.variable("rows"), b.variable("axes")
        indices = b.buffer("indices", (rows, axes), dtype)
        sizes = b.buffer("sizes", (axes,), "int64")
        out = b.buffer("out", (rows, axes), "int64")
        with b.serial(rows) as row, b.serial(axes) as axis:
            index, size = indices[row, axis].astype("int64"), sizes[axis]
            fits = b.ir.And(index >= -size, index < size)
            with b.ir.Assert(fits, f"{place}: an index is outside of its axis"):
                pass
            b.store(out, b.ir.Select(index < b.ir.int64(0), index + size, index), row, axis)

    return prim_func("check_indices", body)


def _nearest(b: Lowering, indices: Any, sizes: Sequence[Any]) -> Any:
    zero = b.tirx.const(0, "int64")

    def element(*i: Any) -> Any:
        index, size = indices(*i).astype("int64"), sizes[-1]
        for axis in range(len(sizes) - 2, -1, -1):
            size = b.tirx.Select(i[-1] == axis, sizes[axis], size)
        front = b.tirx.Select(index < zero, index + size, index)
        return b.tirx.max(b.tirx.min(front, size - 1), zero)

    return b.te.compute(indices.shape, element, name="nearest")
