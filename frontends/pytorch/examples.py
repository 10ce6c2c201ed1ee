"""Example tensors for a module: what the user gave, or made from ``--input`` specs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from ...compiler.errors import InputError, OptionError, Problem
from ...compiler.options import CompileOptions, InputSpec
from ...compiler.program import DimRange
from .trees import Arguments


def arguments_of(module: Any, inputs: object, options: CompileOptions) -> Arguments:
    """The call that ``inputs`` stands for: a tensor or array, a tuple or list of positional arguments, or a
    mapping by parameter name; without it, what ``options.inputs`` describes.

    Raises: InputError, OptionError listing what does not fit the module's ``forward``.
    """
    signature = inspect.signature(module.forward)
    if inputs is None:
        return Arguments.bind(signature, (), _from_specs(signature, options))
    if isinstance(inputs, tuple | list):
        return Arguments.bind(signature, inputs, {})
    if isinstance(inputs, Mapping):
        by_name = {str(key): value for key, value in inputs.items()}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        if takes_any or by_name.keys() <= signature.parameters.keys():
            return Arguments.bind(signature, (), by_name)
    return Arguments.bind(signature, (inputs,), {})


def _from_specs(signature: inspect.Signature, options: CompileOptions) -> dict[str, Any]:
    parameters = signature.parameters
    required = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    given = {spec.name: spec for spec in options.inputs}
    if not given:
        fix = "pass inputs=(...) or --input " + " --input ".join(
            f"{name}:SHAPE" for name in required or ["x"]
        )
        raise InputError("inputs", "a torch module needs example inputs", fix)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        fix = f"it has {', '.join(parameters)}"
        unknown = [
            Problem("--input", f"forward has no parameter {n!r}", fix) for n in given if n not in parameters
        ]
        if unknown:
            raise OptionError.of(unknown)
    missing = [
        Problem("--input", f"no shape for parameter {n!r}", f"--input {n}:SHAPE")
        for n in required
        if n not in given
    ]
    if missing:
        raise InputError.of(missing)
    ranges = dict(options.dims)
    return {name: tensor_of(spec, ranges) for name, spec in given.items()}


def tensor_of(spec: InputSpec, ranges: Mapping[str, DimRange]) -> Any:
    """Zeros for ids and masks (always in range), small random numbers otherwise."""
    import torch

    names = list(dict.fromkeys(dim for dim in spec.shape if isinstance(dim, str)))
    sizes = {dim: _size(ranges.get(dim, DimRange()), 2 + names.index(dim)) for dim in names}
    shape = [sizes[dim] if isinstance(dim, str) else dim or 1 for dim in spec.shape]
    dtype = spec.dtype
    if dtype is None:
        ids = spec.name.endswith(("ids", "mask", "tokens")) or spec.name == "idx"
        dtype = ir.DataType.INT64 if ids else ir.DataType.FLOAT
    torch_dtype = getattr(torch, _TORCH.get(dtype.name, dtype.name.lower()), None)
    if torch_dtype is None:
        raise OptionError("--input", f"{spec.name}: torch has no dtype {dtype.name.lower()}")
    if torch_dtype.is_floating_point:
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(torch_dtype)
    return (torch.ones if spec.name.endswith("mask") else torch.zeros)(shape, dtype=torch_dtype)


_TORCH = {"FLOAT": "float32", "DOUBLE": "float64"}


def _size(bounds: DimRange, wanted: int) -> int:
    size = max(wanted, bounds.minimum)
    return size if bounds.maximum is None else min(size, bounds.maximum)
