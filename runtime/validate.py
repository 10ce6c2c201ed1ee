"""Run-time inputs against an entry's signature: every problem at once, before the session sees them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..compiler.errors import InputError, Problem
from ..compiler.program import DimRange, TensorSpec, dtype_name
from ..compiler.reference import Array, Arrays
from .tensors import to_numpy

Form: TypeAlias = tuple[tuple[str, np.dtype[Any], tuple[int, ...], bool], ...]
"""Names, dtypes, shapes and contiguity: what a check decides by."""


def form_of(inputs: Mapping[str, Any]) -> Form | None:
    """The form of ``inputs`` if all are plain arrays, None for anything else."""
    form = []
    for name, value in inputs.items():
        if type(value) is not np.ndarray or value.dtype.hasobject:
            return None
        form.append((name, value.dtype, value.shape, value.flags.c_contiguous))
    return tuple(form)


def checked(
    inputs: Mapping[str, object], specs: Sequence[TensorSpec], dims: Mapping[str, DimRange]
) -> Arrays:
    """``inputs`` as arrays that fit ``specs``: names, dtypes, ranks, sizes, symbols, ranges.

    Arrays and tensors must have the signature's dtype; Python numbers and lists take it where that
    loses nothing. Raises: InputError listing every input that does not fit.
    """
    problems = list(_name_problems(inputs, specs))
    arrays: Arrays = {}
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in inputs:
            continue
        place = f"input {spec.name!r}"
        try:
            array = to_numpy(inputs[spec.name], spec.dtype)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            problems.append(Problem(place, f"is no array: {error}", f"give {spec}"))
            continue
        problems.extend(Problem(place, fact, fix) for fact, fix in _misfits(array, spec, dims, sizes))
        arrays[spec.name] = array
    if problems:
        raise InputError.of(problems)
    return arrays


def _name_problems(inputs: Mapping[str, object], specs: Sequence[TensorSpec]) -> Iterator[Problem]:
    names = [spec.name for spec in specs]
    for spec in specs:
        if spec.name not in inputs:
            yield Problem(f"input {spec.name!r}", "is missing", f"give {spec}")
    for name in inputs:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"the inputs are {', '.join(names) or 'none'}"
            yield Problem(f"input {name!r}", "does not exist", fix)


def _misfits(
    array: Array, spec: TensorSpec, dims: Mapping[str, DimRange], sizes: dict[str, tuple[int, str]]
) -> Iterator[tuple[str, str]]:
    """What does not fit, and how to mend it; ``sizes`` collects each symbol's size and who gave it."""
    if not _has_dtype(array, spec):
        name = dtype_name(spec.dtype)
        cast = "np.str_" if name == "string" else f"np.{name}" if hasattr(np, name) else f"ml_dtypes.{name}"
        yield f"is {array.dtype.name}, not {name}", f"convert it with .astype({cast})"
    if spec.shape is None:
        return
    if array.ndim != len(spec.shape):
        yield (
            f"has rank {array.ndim}, not {len(spec.shape)}: its shape is {list(array.shape)}",
            f"give {spec}",
        )
        return
    for axis, (size, dim) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(dim, int) and size != dim:
            yield f"has size {size} along axis {axis}, not {dim}", f"give {spec}"
        elif isinstance(dim, str):
            known, giver = sizes.setdefault(dim, (size, spec.name))
            if known != size:
                yield (
                    f"has {dim}={size} along axis {axis}, but input {giver!r} has {dim}={known}",
                    "make them equal",
                )
            elif dim in dims and size not in dims[dim]:
                low, high = dims[dim].minimum, dims[dim].maximum or 0
                fix = f"compile with --dim {dim}={min(size, low)}..{max(size, high)}"
                yield f"has {dim}={size} along axis {axis}, outside {dims[dim]}", fix


def _has_dtype(array: Array, spec: TensorSpec) -> bool:
    if dtype_name(spec.dtype) == "string":
        return array.dtype.kind in "UOS"
    return bool(array.dtype == spec.dtype.numpy())
