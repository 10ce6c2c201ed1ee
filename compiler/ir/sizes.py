"""Concrete sizes for the named dimensions of an entry's inputs: asked for, in range, or usual."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from ..errors import InputError, Problem
from ..program import Dim, DimRange, Program, TensorSpec


def resolve_sizes(
    program: Program, entry: str = "main", sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The size of every named dimension of the entry's inputs.

    A name in ``sizes`` gets that size; any other a usual one (batch 2, sequence 16, image side 64) moved
    into its range in ``program.dims``. A dimension that is an expression (``past + seq``) follows.

    Raises: InputError listing every size outside its range, and every name that no input has.
    """
    asked = dict(sizes or {})
    specs = program.inputs(entry)
    simple = {d: _usual(spec, axis) for spec, axis, d in _symbols(specs) if d.isidentifier()}
    expressions = {d for _, _, d in _symbols(specs) if not d.isidentifier()}
    free = {name for d in expressions for name in ir.SymbolicDim(d).free_symbols()}
    names = {*simple, *free}
    found = [
        Problem(
            f"dimension {name!r}", "is none of this entry's", f"it has {', '.join(sorted(names)) or 'none'}"
        )
        for name in asked
        if name not in names and name not in program.dims
    ]
    for name, size in asked.items():
        allowed = program.dims.get(name, DimRange(0))
        if size not in allowed:
            found.append(Problem(f"dimension {name!r}", f"size {size} is outside {allowed}"))
    if found:
        raise InputError.of(found)
    resolved = {
        name: asked.get(name, _clip(simple.get(name, 8), program.dims.get(name))) for name in sorted(names)
    }
    for expression in sorted(expressions):
        value = ir.SymbolicDim(expression).evaluate(resolved)
        resolved[expression] = value if isinstance(value, int) else 8
    return resolved


def concrete_shape(spec: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The spec's shape with symbols from ``sizes``; unknown sizes are usual ones, an unknown rank is 0."""
    return tuple(
        d if isinstance(d, int) else sizes.get(d or "", _usual(spec, axis))
        for axis, d in enumerate(spec.shape or ())
    )


def _symbols(specs: tuple[TensorSpec, ...]) -> list[tuple[TensorSpec, int, str]]:
    return [(s, axis, d) for s in specs for axis, d in enumerate(s.shape or ()) if isinstance(d, str)]


def _usual(spec: TensorSpec, axis: int) -> int:
    shape: tuple[Dim, ...] = spec.shape or ()
    name = str(shape[axis] or "").lower()
    if "batch" in name:
        return 2
    if "past" in name:
        return 8
    if any(part in name for part in ("seq", "len", "time", "token")):
        return 16
    if len(shape) >= 4 and axis >= len(shape) - 2 and spec.dtype.is_floating_point():
        return 64
    return 2 if axis == 0 else 16


def _clip(size: int, allowed: DimRange | None) -> int:
    if allowed is None:
        return size
    size = max(size, allowed.minimum)
    return size if allowed.maximum is None else min(size, allowed.maximum)
