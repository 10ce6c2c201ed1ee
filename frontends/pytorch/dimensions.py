"""Which dimensions of the inputs are dynamic: what the user says, else batch and sequence by convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...compiler.errors import InputError, OptionError, Problem
from ...compiler.options import CompileOptions
from ...compiler.program import DimRange


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Dynamic axes of every input by name, the ranges asked for, and example tensors that have these axes.

    ``asked``: dimensions the user named; these must be dynamic, the others are tried.
    """

    axes: tuple[dict[int, str], ...]
    ranges: dict[str, DimRange]
    asked: frozenset[str]
    tensors: tuple[Any, ...]

    def static(self) -> Dimensions:
        """The same with every dimension that the user did not ask for fixed at its example's size."""
        axes = tuple({axis: name for axis, name in one.items() if name in self.asked} for one in self.axes)
        return replace(self, axes=axes)


def choose(
    names: Sequence[str],
    tensors: Sequence[Any],
    options: CompileOptions,
    known: Sequence[dict[int, str]] | None = None,
) -> Dimensions:
    """Dynamic dimensions for the inputs ``names``, and ``tensors`` resized so that none of these has size 1.

    An ``--input`` spec fixes or names every dimension of its input. Other inputs get ``batch`` for
    dimension 0 and, if they hold ids, ``sequence`` for dimension 1, or what is ``known`` of them. ``--dim``
    bounds a name.

    Raises: OptionError, InputError listing what does not fit together.
    """
    specs = {spec.name: spec for spec in options.inputs}
    unknown = [
        Problem("--input", f"the model has no input {n!r}", f"it has {', '.join(names)}")
        for n in specs
        if n not in names
    ]
    if unknown:
        raise OptionError.of(unknown)
    axes: list[dict[int, str]] = []
    asked: set[str] = set()
    defaults = conventional(names, tensors) if known is None else known
    for name, tensor, default in zip(names, tensors, defaults, strict=True):
        spec = specs.get(name)
        if spec is None:
            axes.append(default)
            continue
        if len(spec.shape) != tensor.dim():
            raise InputError(
                f"input {name}", f"the example has {tensor.dim()} dimensions, --input gives {len(spec.shape)}"
            )
        axes.append({axis: dim for axis, dim in enumerate(spec.shape) if isinstance(dim, str)})
        asked.update(dim for dim in spec.shape if isinstance(dim, str))
    ranges = dict(options.dims)
    _check_known(ranges, axes)
    asked.update(ranges)
    sizes = _sizes(names, tensors, axes, ranges, asked)
    resized = []
    for name, tensor, one in zip(names, tensors, axes, strict=True):
        shape = specs[name].shape if name in specs else ()
        static = {axis: size for axis, size in enumerate(shape) if isinstance(size, int)}
        resized.append(_resize(tensor, static | {axis: sizes[dim] for axis, dim in one.items()}))
    fixed = {name for name, dim_range in ranges.items() if dim_range.minimum == dim_range.maximum}
    kept = tuple({axis: dim for axis, dim in one.items() if dim not in fixed} for one in axes)
    return Dimensions(
        kept, {n: r for n, r in ranges.items() if n not in fixed}, frozenset(asked - fixed), tuple(resized)
    )


def conventional(names: Sequence[str], tensors: Sequence[Any]) -> list[dict[int, str]]:
    """``batch`` for dimension 0 of the first input's size; ``sequence`` for dimension 1 of ids and masks."""
    batch = next((t.shape[0] for t in tensors if t.dim()), None)
    sequences: dict[str, int] = {}
    chosen = []
    for name, tensor in zip(names, tensors, strict=True):
        axes = {0: "batch"} if tensor.dim() and tensor.shape[0] == batch else {}
        if tensor.dim() == 2 and not tensor.is_floating_point() and not tensor.is_complex():
            dim = "decoder_sequence" if name.startswith("decoder") else "sequence"
            if sequences.setdefault(dim, tensor.shape[1]) != tensor.shape[1]:
                dim = f"{name}_length"
            axes[1] = dim
        chosen.append(axes)
    return chosen


def _check_known(ranges: Mapping[str, DimRange], axes: Sequence[Mapping[int, str]]) -> None:
    known = dict.fromkeys(dim for one in axes for dim in one.values())
    fix = f"it has {', '.join(known)}" if known else "name one with --input NAME:[batch,3]"
    unknown = [
        Problem("--dim", f"the inputs have no dimension {name!r}", fix)
        for name in ranges
        if name not in known
    ]
    if unknown:
        raise OptionError.of(unknown)


def _sizes(
    names: Sequence[str],
    tensors: Sequence[Any],
    axes: Sequence[Mapping[int, str]],
    ranges: Mapping[str, DimRange],
    asked: set[str],
) -> dict[str, int]:
    """One example size for every dimension: at least 2, since tracing takes size 1 for a constant."""
    found: dict[str, tuple[str, int]] = {}
    for name, tensor, one in zip(names, tensors, axes, strict=True):
        for axis, dim in one.items():
            first, size = found.setdefault(dim, (name, tensor.shape[axis]))
            if size != tensor.shape[axis]:
                fact = f"is {size} in input {first} and {tensor.shape[axis]} in input {name}"
                raise InputError(f"dimension {dim}", fact, "give examples of one size, or two names")
    sizes = {}
    for dim, (_, size) in found.items():
        bounds = ranges.get(dim, DimRange())
        size = max(size, 2 if bounds.maximum != 1 else 1, bounds.minimum)
        sizes[dim] = size if bounds.maximum is None else min(size, bounds.maximum)
    return sizes


def _resize(tensor: Any, sizes: Mapping[int, int]) -> Any:
    """Each axis repeated or cut to its size; always a copy: tracing merges inputs that are one tensor."""
    import torch

    for axis, size in sizes.items():
        if tensor.shape[axis] != size:
            index = torch.arange(size, device=tensor.device) % max(tensor.shape[axis], 1)
            tensor = tensor.index_select(axis, index)
    return tensor.detach().clone()
