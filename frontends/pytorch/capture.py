"""Capture a module with torch.export: evaluation mode, flat tensors, dynamic dimensions with a fallback."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from ...compiler.errors import CompileError, Problem, UnsupportedError
from ...compiler.program import DimRange
from .dimensions import Dimensions
from .reasons import explain
from .trees import Arguments, result_leaves, result_names


@dataclass(slots=True)
class Capture:
    """An exported program over flat tensors; ``result`` gives the module's own result as a tree of names."""

    exported: Any
    result: Any
    output_names: tuple[str, ...]
    dims: dict[str, DimRange]
    symbols: dict[str, str]
    note: str = ""


@contextmanager
def evaluation(module: Any) -> Iterator[None]:
    """Put ``module`` and its submodules into evaluation mode, without gradients; restored at the end."""
    import torch

    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' warnings and log lines from the user: what matters is raised or noted."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    loggers += [
        log
        for name in list(logging.root.manager.loggerDict)
        if name.startswith("torch.onnx")
        for log in [logging.getLogger(name)]
    ]
    levels = [log.level for log in loggers]
    sink = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
        warnings.simplefilter("ignore")
        for log in loggers:
            log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)


def capture(module: Any, arguments: Arguments, dimensions: Dimensions, name: str) -> Capture:
    """Export ``module`` called with ``arguments``.

    Conventional dimensions that do not export become static, and the note says so; a dimension that was
    asked for must export. Raises: UnsupportedError with torch's reason and the fix.
    """
    kept: dict[str, Any] = {}
    flat = _flat(module, arguments, kept)
    with evaluation(module), quiet():
        exported, note = _export(flat, arguments, dimensions, name)
    symbols, dims = _named(exported, dimensions)
    _require_asked(exported, dimensions, arguments, name)
    if kept["outputs"] == 0:
        raise UnsupportedError(name, "the module returns no tensor", "return the tensors to compute")
    lost = dict.fromkeys(d for one in dimensions.axes for d in one.values() if d not in dims)
    if lost and not note:
        note = f"{', '.join(lost)} static: the module fixes the size"
    return Capture(exported, kept["result"], kept["names"], dims, symbols, note)


def _flat(module: Any, arguments: Arguments, kept: dict[str, Any]) -> Any:
    """A module over the tensors alone; what it returns besides them is put into ``kept`` while tracing."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.training = False
            self.module = module

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            args, kwargs = arguments.call(tensors)
            result = self.module(*args, **kwargs)
            leaves, tree = result_leaves(result)
            kept.update(result=tree, names=result_names(result), outputs=len(leaves))
            return tuple(leaves)

    return Flat()


def _export(flat: Any, arguments: Arguments, dimensions: Dimensions, name: str) -> tuple[Any, str]:
    """Dimensions that were asked for are named, so that they must export; others are dynamic if they can be.

    Two inputs whose automatic sizes torch tells apart may still share a name: then nothing relates them.
    """
    if not any(dimensions.axes):
        return _torch_export(flat, dimensions.tensors, None, name, arguments), ""
    if dimensions.asked:
        return _torch_export(flat, dimensions.tensors, _specs(dimensions, named=True), name, arguments), ""
    try:
        return _torch_export(flat, dimensions.tensors, _specs(dimensions, named=False), name, arguments), ""
    except UnsupportedError as error:
        exported = _torch_export(flat, dimensions.tensors, None, name, arguments)
        return exported, f"all sizes static: {error.problems[0].fact}"


def _specs(dimensions: Dimensions, *, named: bool) -> Any:
    """torch's ``dynamic_shapes``: one ``Dim`` for each name, or an automatic one for every axis."""
    from torch.export import Dim

    made: dict[str, Any] = {}
    for axis_names in dimensions.axes:
        for dim in axis_names.values():
            bounds = dimensions.ranges.get(dim, DimRange())
            bounded = named and dim in dimensions.ranges
            made.setdefault(dim, Dim(dim, min=bounds.minimum, max=bounds.maximum) if bounded else Dim.AUTO)
    return {
        "tensors": tuple({axis: made[dim] for axis, dim in one.items()} or None for one in dimensions.axes)
    }


def _torch_export(flat: Any, tensors: Any, shapes: Any, name: str, arguments: Arguments) -> Any:
    import torch

    try:
        return torch.export.export(flat, tuple(tensors), dynamic_shapes=shapes, strict=False)
    except CompileError:
        raise
    except Exception as error:  # torch raises errors of many kinds, user code raises any
        raise explain(error, name, arguments) from error


def _symbols(exported: Any, dimensions: Dimensions) -> dict[str, list[str | None]]:
    """torch's symbol at every dynamic axis by dimension; None where it fixed the size."""
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes if node.op == "placeholder"}
    found: dict[str, list[str | None]] = {}
    for name, one in zip(exported.graph_signature.user_inputs, dimensions.axes, strict=True):
        for axis, dim in one.items():
            size = values[name].shape[axis]
            symbol = str(size) if isinstance(size, int) else str(size.node.expr)
            found.setdefault(dim, []).append(None if symbol.isdigit() else symbol)
    return found


def range_of(exported: Any, symbols: list[str | None]) -> DimRange:
    """What torch found the sizes of ``symbols`` may be; its lower bound 2 stands for 1."""
    low, high = 1, None
    for symbol, bounds in exported.range_constraints.items():
        if str(symbol) in symbols:
            lower, upper = int(bounds.lower), int(bounds.upper) if bounds.upper.is_Integer else None
            low = max(low, lower if lower > 2 else 1)
            high = upper if high is None else high if upper is None else min(high, upper)
    return DimRange(low, None if high is None or high >= 2**31 else high)


def _require_asked(exported: Any, dimensions: Dimensions, arguments: Arguments, name: str) -> None:
    """Raise UnsupportedError for every axis that was asked to vary and that the module fixes."""
    sizes = {dim: iter(found) for dim, found in _symbols(exported, dimensions).items()}
    problems = []
    for leaf, tensor, one in zip(arguments.names, dimensions.tensors, dimensions.axes, strict=True):
        for axis, dim in one.items():
            if next(sizes[dim]) is None and dim in dimensions.asked:
                fact = f"dimension {dim} of input {leaf} is fixed at {tensor.shape[axis]} by the module"
                problems.append(Problem(name, fact, "give the size in --input, or let it default"))
    if problems:
        raise UnsupportedError.of(problems)


def _named(exported: Any, dimensions: Dimensions) -> tuple[dict[str, str], dict[str, DimRange]]:
    """The name of every symbol, and the ranges by name."""
    symbols: dict[str, str] = {}
    dims: dict[str, DimRange] = {}
    for dim, found in _symbols(exported, dimensions).items():
        for symbol in found:
            if symbol is not None and symbol.isidentifier():
                symbols.setdefault(symbol, dim)
        if any(symbol is not None and symbols.get(symbol) == dim for symbol in found):
            dims[dim] = dimensions.ranges.get(dim) or range_of(exported, found)
    return symbols, dims
