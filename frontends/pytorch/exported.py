"""Import an exported program (``torch.export``), in memory or from a ``.pt2`` file."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ...compiler.errors import InputError, OptionError, Problem, UnsupportedError, require
from ...compiler.options import CompileOptions
from ...compiler.program import Call, DimRange
from ..base import Import
from .capture import range_of
from .dimensions import conventional
from .files import read_pt2
from .importer import distinct, program_from_exported
from .reference import TorchReference
from .trees import Arguments, result_leaves, result_names, to_numpy


def import_pt2(path: Path, options: CompileOptions, inputs: object = None) -> Import:
    """Import a ``.pt2`` file. Raises: ModelError for a damaged or refused one, and as ``import_exported``."""
    imported = import_exported(read_pt2(path), options, inputs, name=path.stem)
    imported.program.source["path"] = str(path)
    return imported


def import_exported(
    exported: Any, options: CompileOptions, inputs: object = None, *, name: str = ""
) -> Import:
    """Import a ``torch.export.ExportedProgram``; its dynamic dimensions and ranges are kept.

    They are named by ``options.inputs``, else ``batch`` and ``sequence`` by convention; ``options.dims``
    narrows a range. ``inputs`` are examples of the same structure as those it was exported with.

    Raises: InputError, OptionError, UnsupportedError.
    """
    torch = require("torch", extra="torch")
    name = name or "exported program"
    module = exported.module()
    signature = _signature(exported, module)
    fakes = _placeholders(exported)
    leaves = [
        fakes.get(leaf, leaf) if isinstance(leaf, str) else leaf
        for leaf in exported.graph_signature.user_inputs
    ]
    args, kwargs = torch.utils._pytree.tree_unflatten(leaves, exported.call_spec.in_spec)
    arguments = Arguments.bind(signature, args, kwargs)
    symbols, dims = _dims(exported, arguments, options, name)
    result = _result(exported, torch)
    outputs = distinct(result_names(result), arguments.names)
    program = program_from_exported(exported, name, arguments.names, outputs, symbols, dims, "torch")
    _, tree = result_leaves(result)
    program.call = Call(arguments.parameters(arguments.names), tree(outputs), "torch")
    program.source |= {"framework": f"torch {torch.__version__.partition('+')[0]}", "model": name}
    reference = TorchReference(module, arguments, arguments.names, outputs, ())
    return Import(program, reference, _examples(signature, arguments, inputs))


def _signature(exported: Any, module: Any) -> inspect.Signature:
    """The signature of the program: what it was exported with by keyword, it takes by keyword only."""
    positional, _ = exported.call_spec.in_spec.children()
    parameters = [
        p.replace(kind=p.POSITIONAL_OR_KEYWORD if i < positional.num_children else p.KEYWORD_ONLY)
        for i, p in enumerate(inspect.signature(module.forward).parameters.values())
    ]
    return inspect.Signature(parameters)


def _placeholders(exported: Any) -> dict[str, Any]:
    return {n.name: n.meta.get("val") for n in exported.graph.nodes if n.op == "placeholder"}


def _result(exported: Any, torch: Any) -> Any:
    """What the program returns, with fake tensors as leaves."""
    values = {node.name: node.meta.get("val") for node in exported.graph.nodes}
    leaves = [
        values.get(leaf, leaf) if isinstance(leaf, str) else leaf
        for leaf in exported.graph_signature.user_outputs
    ]
    return torch.utils._pytree.tree_unflatten(leaves, exported.call_spec.out_spec)


def _examples(signature: inspect.Signature, arguments: Arguments, inputs: object) -> dict[str, Any] | None:
    if inputs is None:
        return None
    if isinstance(inputs, dict):
        given = Arguments.bind(signature, (), inputs)
    else:
        given = Arguments.bind(signature, inputs if isinstance(inputs, tuple | list) else (inputs,), {})
    if given.names != arguments.names:
        raise InputError(
            "inputs", f"give {', '.join(given.names)}", f"the program takes {', '.join(arguments.names)}"
        )
    return {n: to_numpy(t) for n, t in zip(given.names, given.tensors, strict=True)}


def _dims(
    exported: Any, arguments: Arguments, options: CompileOptions, name: str
) -> tuple[dict[str, str], dict[str, DimRange]]:
    """Names for torch's symbols, and their ranges narrowed by ``--dim``."""
    specs = {spec.name: spec.shape for spec in options.inputs}
    symbols: dict[str, str] = {}
    for leaf, tensor, axes in zip(
        arguments.names, arguments.tensors, conventional(arguments.names, arguments.tensors), strict=True
    ):
        for axis, size in enumerate(tensor.shape):
            if isinstance(size, int):
                continue
            wanted = specs[leaf][axis] if leaf in specs and axis < len(specs[leaf]) else None
            dim = wanted if isinstance(wanted, str) else axes.get(axis, f"{leaf}_{axis}")
            symbol = str(size.node.expr)
            if symbol.isidentifier() and symbol not in symbols:
                symbols[symbol] = dim if dim not in symbols.values() else f"{leaf}_{axis}"
    dims = {dim: range_of(exported, [symbol]) for symbol, dim in symbols.items()}
    asked = dict(options.dims)
    fix = f"it has {', '.join(dims)}" if dims else "export it with dynamic_shapes"
    unknown = [
        Problem("--dim", f"{name} has no dynamic dimension {dim!r}", fix) for dim in asked if dim not in dims
    ]
    if unknown:
        raise OptionError.of(unknown)
    for dim, bounds in asked.items():
        whole = dims[dim]
        if bounds.minimum not in whole or (
            (bounds.maximum is None or bounds.maximum not in whole) and whole.maximum
        ):
            raise UnsupportedError(
                f"dimension {dim}", f"{bounds} exceeds the exported range {whole}", f"--dim {dim}={whole}"
            )
        dims[dim] = bounds
    return symbols, dims
