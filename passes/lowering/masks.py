"""What an attention mask is, found by evaluating the nodes that compute it at several sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...compiler.errors import CompileError
from ...compiler.ir.constants import constant, constant_tensor
from ...compiler.program import DimRange
from ...compiler.reference import Array
from ..base import decline
from .mask_graph import MaskGraph


@dataclass(frozen=True, slots=True)
class Kind:
    """What a mask lets queries see: everything, or if ``causal`` themselves and what is before them.

    ``window``: of that only so many tokens, themselves among them; 0 is all.
    """

    causal: bool
    window: int = 0

    def __str__(self) -> str:
        name = "causal" if self.causal else "full"
        return f"{name} within {self.window}" if self.window else name


FULL, CAUSAL = Kind(False), Kind(True)

SIZES = (1, 2, 3, 5, 16)
LARGEST = 4200
"""Longest sequence a mask is evaluated at: covers windows of 4096."""

_UNBOUNDED = 1 << 31
_FAILURES = (CompileError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What reference evaluation raises: no reference semantics, or numpy's objections."""


def kind_of(
    graph: MaskGraph, length: int | str, dims: Mapping[str, DimRange], causal: bool, windows: bool = False
) -> Kind:
    """What ``graph`` masks over ``length`` (a size or symbol) queries and keys.

    It is evaluated at small lengths and at those around every integer constant its nodes use (a window, a
    table), so that none of them can hide beyond. ``causal``: the attention masks causally by itself.
    ``windows``: masks that are causal within a window are of interest too.

    Raises: NoMatch if it is of no such kind, or can't be told.
    """
    symbols = graph.symbols
    seen: dict[Kind, int] = {}  # the greatest size at which it looked so
    for size in _lengths(graph, length, dims):
        for others in (1, 2):
            if size > LARGEST:
                decline(f"the mask uses a number near {size}, which is too long to evaluate at")
            sizes = {s: others if s not in dims or others in dims[s] else dims[s].minimum for s in symbols}
            if isinstance(length, str):
                sizes[length] = size
            try:
                allowed = _allowed(graph.at(sizes))
            except _FAILURES as error:
                decline(f"the mask can't be evaluated at length {size} ({type(error).__name__})")
            if not {allowed.shape[-1], allowed.shape[-2]} <= {1, size} and size > max(SIZES):
                continue  # beyond a table's end: the model itself fails at this length
            try:
                square = np.broadcast_to(allowed, (*allowed.shape[:-2], size, size))
            except ValueError:
                decline("the mask has another shape than queries by keys")
            triangle = np.tri(size, dtype=np.bool_)
            if causal:
                square = square & triangle
            if size == 1:
                if not square.all():
                    decline("a single query may not see itself")
            elif (square == triangle).all():
                seen[CAUSAL] = size
            elif square.all():
                seen[FULL] = size
            elif windows and (width := _window(square)):
                seen[Kind(True, width)] = size
            else:
                decline(f"the mask is neither causal nor full at length {size}")
    return _only(seen)


def _only(seen: dict[Kind, int]) -> Kind:
    """The one kind; below its width a window looks causal. Raises: NoMatch if there are several."""
    for kind in seen:
        if kind.window and all(k == kind or (k == CAUSAL and n <= kind.window) for k, n in seen.items()):
            return kind
    if len(seen) != 1:
        decline("the mask changes its kind with the length")
    return next(iter(seen))


def _window(square: Array) -> int:
    """How many tokens each query sees, itself the last, where it is the same for all; else 0."""
    size = square.shape[-1]
    width = int(square.reshape(-1, size)[-1].sum())
    band = np.tri(size, dtype=np.bool_) & ~np.tri(size, k=-width, dtype=np.bool_)
    return width if (square == band).all() else 0


def _lengths(graph: MaskGraph, length: int | str, dims: Mapping[str, DimRange]) -> list[int]:
    if isinstance(length, int):
        return [length]
    bounds = dims.get(length, DimRange())
    found = set(SIZES)
    for value in graph.constants:
        tensor = constant_tensor(value)
        array = constant(value, limit=64)
        numbers = [] if tensor is None else list(tensor.shape.numpy())
        if array is not None and array.dtype.kind in "iuf":
            numbers += [int(n) for n in array.ravel().tolist() if abs(n) < _UNBOUNDED]
        for number in map(abs, numbers):
            found |= {number, number + 1, number + 2} if number > 1 else set()
    return sorted(n for n in found if n in bounds)


def _allowed(mask: Array) -> Array:
    """Which keys each query may see. Raises: NoMatch if the mask adds anything but 0 or minus infinity."""
    if mask.ndim < 2:
        decline("the mask has fewer than two dimensions")
    if mask.dtype == np.bool_:
        return mask
    if mask.dtype.kind != "f":
        decline("the mask is no boolean or float tensor")
    shut = mask <= np.finfo(mask.dtype).min * 0.49
    if not (shut | (mask == 0)).all():
        decline("the mask adds finite biases")
    allowed: Array = ~shut
    return allowed
