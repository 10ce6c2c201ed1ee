"""Calibration data from an ``.npz``: checked as a whole, cut into samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..compiler.errors import InputError, Problem
from ..compiler.ir.examples import index_limit
from ..compiler.program import Dim, DimRange, Program, TensorSpec
from ..compiler.reference import Array, Arrays
from ..runtime.validate import checked

_TOGETHER = 8
"""Rows that are run together when a file has one long batch."""


def archived_samples(program: Program, path: Path) -> list[Arrays]:
    """Samples of an ``.npz``: several along its batch, or along one more leading axis of every array.

    Raises: InputError with every name, dtype, shape, NaN and index that is wrong.
    """
    arrays = _read(path)
    given = arrays.items()
    specs = program.inputs()
    problems: list[Problem] = []
    counts: dict[str, int] = {}
    for spec in specs:
        if spec.name not in arrays:
            continue
        place, array = f"{path.name}: {spec.name}", arrays[spec.name]
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int(np.count_nonzero(~np.isfinite(array)))
            fact = f"{count} of {array.size} values are NaN or infinite"
            problems.append(Problem(place, fact, "calibrate on real inputs"))
        limit = index_limit(program, spec.name) if array.dtype.kind in "iu" else None
        if limit is not None and array.size and not -limit <= array.min() <= array.max() < limit:
            fact = f"holds indices from {array.min()} to {array.max()}, the model's table has {limit} rows"
            problems.append(Problem(place, fact))
        counts[spec.name] = _count(array, spec, program.dims)
    several = {name: count for name, count in counts.items() if count >= 0}
    if 0 in several.values():
        problems.append(Problem(path.name, "holds no sample", "give a few dozen"))
    elif len(set(several.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in several.items())
        problems.append(Problem(path.name, f"its arrays hold different numbers of samples: {listed}"))
    elif not problems:
        count = max(several.values(), default=1)
        shapes = {spec.name: spec.shape for spec in specs}
        found = [
            {name: _sample(array, shapes.get(name), index, counts.get(name, -1)) for name, array in given}
            for index in range(count)
        ]
        try:
            return [checked(sample, specs, program.dims) for sample in found]
        except InputError as error:
            raise InputError.of(_placed(path, error)) from None
    try:  # names and dtypes too, so that all problems are told at once
        firsts = {name: array[:1] if array.ndim else array for name, array in arrays.items()}
        checked(firsts, [TensorSpec(s.name, s.dtype, None) for s in specs], {})
    except InputError as error:
        problems += _placed(path, error)
    raise InputError.of(problems)


def _placed(path: Path, error: InputError) -> list[Problem]:
    return [Problem(f"{path.name}: {problem.place}", problem.fact, problem.fix) for problem in error.problems]


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile and numpy raise a dozen kinds for damaged data
        fact = f"can't be read: {(str(error).splitlines() or [type(error).__name__])[0]}"
        raise InputError(f"--calib {path.name}", fact, "write it with np.savez") from None


def _count(array: Array, spec: TensorSpec, dims: Mapping[str, DimRange]) -> int:
    """How many samples ``array`` holds; -1 for one that every sample shares."""
    if spec.shape is None or not spec.shape or array.ndim == 0:
        return len(array) if spec.shape == () and array.ndim == 1 else -1
    if array.ndim == len(spec.shape) + 1:
        return len(array)
    step = _step(array, spec, dims)
    return -1 if step == 0 else math.ceil(len(array) / step)


def _step(array: Array, spec: TensorSpec, dims: Mapping[str, DimRange]) -> int:
    """Rows of the batch that make one sample; 0 if the leading axis is no batch to cut."""
    lead = (spec.shape or (None,))[0]
    if isinstance(lead, int):
        return lead if len(array) % lead == 0 else max(1, len(array))
    if lead is None or not ("batch" in lead or lead.lower() in ("n", "b")):
        return max(1, len(array))
    span = dims.get(lead, DimRange())
    most = _TOGETHER if span.maximum is None else min(_TOGETHER, span.maximum)
    step = max(most, span.minimum)
    while step > span.minimum and len(array) % step:
        step -= 1  # all samples of one size
    return step


def _sample(array: Array, shape: tuple[Dim, ...] | None, index: int, count: int) -> Array:
    if shape is None or count < 0:
        return array
    if array.ndim == len(shape) + 1:
        return np.asarray(array[index])
    step = math.ceil(len(array) / count)
    return array[index * step : (index + 1) * step]
