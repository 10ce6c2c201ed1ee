"""Inputs to run an executable on when the caller has none: golden ones, resized, or made up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..compiler.errors import InputError
from ..compiler.program import DimRange, TensorSpec, dtype_name
from ..compiler.reference import Array, Arrays
from .tensors import fitted


def sample_inputs(
    specs: Sequence[TensorSpec],
    dims: Mapping[str, DimRange],
    golden: Mapping[str, Array] | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
) -> Arrays:
    """Arrays that fit ``specs`` with named dimensions of ``sizes``.

    Golden inputs are repeated or cut along the dimensions that are asked for, so that indices stay in
    their tables. Without them floats are random, booleans true, integers zero.
    Raises: InputError for a size whose name no input has.
    """
    sizes = dict(sizes or {})
    named = {dim for spec in specs for dim in spec.shape or () if isinstance(dim, str)}
    if unknown := sorted(sizes.keys() - named):
        fix = f"they are {', '.join(sorted(named))}" if named else "all sizes are fixed"
        raise InputError("sizes", f"no input has a dimension {', '.join(unknown)}", fix)
    rng = np.random.default_rng(seed)
    golden = None if golden is None else fitted(golden, specs)
    return {
        spec.name: _resized(golden[spec.name], spec, sizes)
        if golden is not None and spec.name in golden
        else _made(spec, sizes, dims, rng)
        for spec in specs
    }


def _resized(array: Array, spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    for axis, dim in enumerate(spec.shape or ()):
        if isinstance(dim, str) and dim in sizes and array.shape[axis]:
            array = np.take(array, np.arange(sizes[dim]) % array.shape[axis], axis=axis)
    return array


def _made(
    spec: TensorSpec, sizes: Mapping[str, int], dims: Mapping[str, DimRange], rng: np.random.Generator
) -> Array:
    shape = tuple(
        dim if isinstance(dim, int) else sizes.get(dim or "", dims.get(dim or "", DimRange()).minimum)
        for dim in spec.shape or ()
    )
    if dtype_name(spec.dtype) == "string":
        return np.full(shape, "", dtype=object)
    dtype = spec.dtype.numpy()
    if dtype.kind in "iu":
        return np.zeros(shape, dtype)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)
