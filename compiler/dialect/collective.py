"""Where ranks of a partitioned program meet: miaotui AllReduce, AllGather, ReduceScatter, Send, Recv.

In the whole program, whose values are all ranks' together, each is the identity. In the program of one rank
a collective has ``sizes``: of the shares along ``axis``. Its reference is then a group's, ``REFERENCE``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from ..errors import UnsupportedError
from ..reference import Array
from .base import (
    MIAOTUI,
    Inferred,
    OpSchema,
    dtype_of,
    integer,
    integers,
    like_first,
    parameters,
    shape_of,
    text,
)

COLLECTIVES = ("AllReduce", "AllGather", "ReduceScatter")
TRANSFERS = ("Send", "Recv")

Group: TypeAlias = "Callable[[Sequence[Array], int, Sequence[int]], list[Array]]"


def all_reduce(given: Sequence[Array], axis: int = 0, sizes: Sequence[int] = ()) -> list[Array]:
    """The sum of all, in the order of the ranks, at each: float32[...] of ranks."""
    total = given[0].copy()
    for array in given[1:]:
        total = total + array
    return [total] * len(given)


def all_gather(given: Sequence[Array], axis: int, sizes: Sequence[int] = ()) -> list[Array]:
    """All shares joined along ``axis``, at each rank."""
    return [np.concatenate(given, axis)] * len(given)


def reduce_scatter(given: Sequence[Array], axis: int, sizes: Sequence[int] = ()) -> list[Array]:
    """The sum of all, of which each rank gets its share along ``axis``; even ones unless ``sizes`` says."""
    total = all_reduce(given)[0]
    if not sizes:
        return np.array_split(total, len(given), axis)
    return np.split(total, np.cumsum(sizes)[:-1], axis)


REFERENCE: Mapping[str, Group] = {
    "AllReduce": all_reduce,
    "AllGather": all_gather,
    "ReduceScatter": reduce_scatter,
}
"""What the ranks of a group get for what each gives, by operator: arrays by rank, axis, sizes of shares."""


def _alone(x: Array, *, sizes: Sequence[int] | None = None, **_: Any) -> tuple[Array]:
    if sizes is not None and len(sizes) > 1:
        raise UnsupportedError("collective", "one rank alone has no reference semantics for it")
    return (x,)


def _gathered(node: ir.Node) -> Sequence[Inferred]:
    return _resized(node, lambda sizes: sum(sizes))


def _scattered(node: ir.Node) -> Sequence[Inferred]:
    return _resized(node, lambda sizes: sizes[node.attributes.get_int("rank", 0)])


def _resized(node: ir.Node, length: Callable[[Sequence[int]], int]) -> Sequence[Inferred]:
    shape, sizes = shape_of(node, 0), node.attributes.get_ints("sizes", ())
    if shape is None or not sizes:
        return ((dtype_of(node, 0), shape),)
    dims = list(shape)
    dims[node.attributes.get_int("axis", 0)] = length(sizes)
    return ((dtype_of(node, 0), ir.Shape(dims)),)


def _free(inputs: Any, outputs: Any, attributes: Any) -> float:
    return 0.0


_OVER = {"over": text("tp")}
_SHARES = {**_OVER, "axis": integer(0), "sizes": integers()}

SCHEMAS = (
    *(
        OpSchema(name, parameters("x:T"), parameters("y:T"), infer, _alone, attributes, _free, MIAOTUI)
        for name, infer, attributes in (
            ("AllReduce", like_first, {**_OVER, "sizes": integers()}),
            ("AllGather", _gathered, _SHARES),
            ("ReduceScatter", _scattered, {**_SHARES, "rank": integer(0)}),
            ("Send", like_first, {"stage": integer(required=True)}),
            ("Recv", like_first, {"stage": integer(required=True)}),
        )
    ),
)
