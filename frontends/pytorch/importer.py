"""Import a torch module: capture, translate, tidy, and keep the module as the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...compiler.errors import require
from ...compiler.options import CompileOptions
from ...compiler.program import Call, DimRange, Program
from ..base import Import
from ..onnx.normalize import program_from_model
from .capture import capture
from .dimensions import choose
from .examples import arguments_of
from .graph import name_weights, rename, simplify
from .origins import complete_sources, module_outputs, set_torch_sources
from .recurrent import prepare_layers, recurrent_operators, weight_names
from .reference import TorchReference, device_of
from .translate import translate
from .trees import to_numpy
from .weights import Weight, attach, emit_weights, view_weights


def import_module(
    module: Any,
    options: CompileOptions,
    inputs: object = None,
    *,
    framework: str = "torch",
    stored: Mapping[int, Weight] | None = None,
) -> Import:
    """Import a ``torch.nn.Module``, called with ``inputs`` or with what ``options.inputs`` describes.

    The module is put into evaluation mode for the time of the import; its parameters become the program's
    weights without a copy. Without ``--input`` and ``--dim``, dimension 0 and the length of ids are dynamic
    where the module allows. ``stored`` gives parameters, by address, values that are not in the module.

    Raises: InputError, OptionError, UnsupportedError (operators, control flow, sizes that can't vary).
    """
    torch = require("torch", extra="torch")
    name = type(module).__name__
    arguments = arguments_of(module, inputs, options)
    device = device_of(module)
    examples = {n: to_numpy(t) for n, t in zip(arguments.names, arguments.tensors, strict=True)}
    dimensions = choose(arguments.names, [t.to(device) for t in arguments.tensors], options)
    prepared = prepare_layers(module)
    with recurrent_operators(prepared):
        captured = capture(module, arguments, dimensions, name)
    outputs = distinct(captured.output_names, arguments.names)
    program = program_from_exported(
        captured.exported,
        name,
        arguments.names,
        outputs,
        captured.symbols,
        captured.dims,
        framework,
        weight_names(prepared),
        stored,
        owned=True,
    )
    program.call = Call(arguments.parameters(arguments.names), captured.result(outputs), "torch")
    program.source |= {"framework": f"torch {torch.__version__.partition('+')[0]}", "model": name}
    if captured.note:
        program.source["note"] = captured.note
    reference = TorchReference(module, arguments, arguments.names, outputs, list(program.layers))
    return Import(program, reference, examples if inputs is not None else None)


def program_from_exported(
    exported: Any,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    symbols: dict[str, str],
    dims: dict[str, DimRange],
    framework: str,
    weights: Mapping[int, str] | None = None,
    stored: Mapping[int, Weight] | None = None,
    *,
    owned: bool = False,
) -> Program:
    """The Program of an exported program.

    ``symbols`` names torch's dimension symbols, ``weights`` tensors by address that torch only numbers,
    ``stored`` gives values by address. ``owned``: the program may be edited.
    """
    model, decomposed = translate(exported, name, owned=owned)
    name_weights(model, weights or {})
    attach(model, stored or {})
    by_name = {value.name: value for node in model.graph for value in node.outputs}
    layers = {path: by_name[n] for path, n in module_outputs(decomposed).items() if n in by_name}
    rename(model, inputs, outputs, symbols)
    names = {path: str(value.name) for path, value in layers.items()}
    set_torch_sources(model, framework)
    view_weights(model)
    simplify(model)
    complete_sources(model)
    program = program_from_model(model, framework=framework, name=name, dims=dims)
    emit_weights(program.main)
    kept = {str(v.name) for node in program.main.graph for v in node.outputs}
    program.layers = {path: value for path, value in names.items() if value in kept}
    return program


def distinct(outputs: Sequence[str], inputs: Sequence[str]) -> tuple[str, ...]:
    """Output names that are no input's name."""
    return tuple(f"{name}_output" if name in inputs else name for name in outputs)
