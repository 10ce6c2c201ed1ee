"""Import a Keras 3 model or ``.keras`` file through the torch road; recurrent layers stay operators."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ...compiler.errors import require
from ...compiler.options import CompileOptions
from ...compiler.program import Call
from ..base import Import
from ..pytorch.capture import capture
from ..pytorch.dimensions import choose
from ..pytorch.importer import distinct, program_from_exported
from ..pytorch.origins import ROOT
from ..pytorch.trees import Arguments
from .backend import require_keras
from .files import read_keras
from .layers import traced_calls, write_module_stacks
from .recurrent import prepare_cells, recurrent_operators
from .reference import KerasReference
from .signature import Signature, signature_of


def import_keras(source: Any, options: CompileOptions, inputs: object = None) -> Import:
    """Import a Keras model or the path of a ``.keras`` file.

    Dimensions that Keras leaves open stay dynamic: ``batch``, and ``sequence`` for an open time axis. LSTM,
    GRU and SimpleRNN layers, also bidirectional, stacked or masked, become ONNX LSTM, GRU and RNN.

    Raises: ModelError for a damaged or refused file, ToolError for a missing Keras or another backend,
    UnsupportedError listing layers and operators that can't be expressed, InputError, OptionError.
    """
    keras = require_keras()
    require("torch", extra="keras")
    path = Path(source) if isinstance(source, str | Path) else None
    model = read_keras(path) if path is not None else source
    place = path.stem if path is not None else str(model.name)
    signature = signature_of(model, inputs, options)
    given = None if inputs is None else signature.flatten(inputs)
    module = _module(model, signature)
    tensors = given if given is not None else signature.examples()
    if not all(layer.built for layer in (model, *model._flatten_layers())):
        KerasReference(module, signature.names, (), ()).build(
            dict(zip(signature.names, tensors, strict=True))
        )
    prepared = prepare_cells(model, place)
    arguments = Arguments.bind(inspect.signature(module.forward), tensors, {})
    dimensions = choose(arguments.names, arguments.tensors, options, signature.axes)
    with traced_calls(), recurrent_operators(prepared):
        captured = capture(module, arguments, dimensions, place)
    write_module_stacks(captured.exported, ROOT)
    outputs = distinct(captured.output_names, arguments.names)
    weights = {v.value.data_ptr(): v.path for v in model.variables} | prepared.names()
    program = program_from_exported(
        captured.exported, place, arguments.names, outputs, captured.symbols, captured.dims, "keras",
        weights=weights,
    )  # fmt: skip
    program.call = Call({"inputs": signature.tree()}, captured.result(outputs), "keras")
    program.source |= {"framework": f"keras {keras.__version__}", "model": place}
    if path is not None:
        program.source["path"] = str(path)
    if captured.note:
        program.source["note"] = captured.note
    reference = KerasReference(module, arguments.names, outputs, list(program.layers))
    examples = None if given is None else dict(zip(arguments.names, given, strict=True))
    return Import(program, reference, examples)


def _module(model: Any, signature: Signature) -> Any:
    """A torch module that takes the model's inputs by name and calls it for inference."""
    import torch

    class KerasModule(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            return self.model(signature.nest(tensors), training=False)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in signature.names]
    module = KerasModule()
    forward: Any = lambda *tensors: KerasModule.forward(module, *tensors)  # noqa: E731
    forward.__signature__ = inspect.Signature(parameters)
    object.__setattr__(module, "forward", forward)
    return module
