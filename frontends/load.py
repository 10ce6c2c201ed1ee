"""Load any model there is a frontend for: the kind of the source decides."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..compiler.errors import InputError, ModelError
from ..compiler.options import CompileOptions
from ..compiler.program import Call, TensorSpec
from ..compiler.reference import Reference
from .base import Import

ACCEPTED = (
    "a .onnx, .gguf, .pt2 or .keras file, a Hugging Face folder, a torch module or exported program, "
    "a Keras model, or an ONNX model in memory"
)


def load(source: object, options: CompileOptions | None = None, inputs: object = None) -> Import:
    """Import ``source`` by its kind (see ``ACCEPTED``); ``inputs`` are examples, as the source takes them.

    Raises: ModelError for a missing, damaged, refused or unknown source; InputError, OptionError and
    UnsupportedError as the source's frontend says.
    """
    options = CompileOptions() if options is None else options
    if isinstance(source, str | os.PathLike):
        return _load_path(Path(source), options, inputs)
    return _load_object(source, options, inputs)


def _load_path(path: Path, options: CompileOptions, inputs: object) -> Import:
    if not path.exists():
        hint = "give a file or folder on this machine; nothing is downloaded"
        raise ModelError(str(path), "does not exist", hint)
    if path.is_dir():
        return _load_folder(path, options, inputs)
    suffix = path.suffix.lower()
    if suffix in REFUSED:
        fact, fix = REFUSED[suffix]
        raise ModelError(path.name, fact, fix)
    if suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".pt2"):
        from .pytorch import import_pt2, is_pt2, refuse_pickle

        if suffix != ".pt2" and not is_pt2(path):
            raise refuse_pickle(path)
        return import_pt2(path, options, inputs)
    if suffix == ".gguf":
        from .gguf import import_gguf

        return import_gguf(path, options, inputs)
    if suffix == ".keras":
        from .keras import import_keras

        return import_keras(path, options, inputs)
    if suffix in (".onnx", ".ort"):
        from .onnx import import_onnx

        return _with_examples(import_onnx(path, options), inputs)
    raise ModelError(path.name, f"is of an unknown kind {suffix or '(no suffix)'!r}", f"give {ACCEPTED}")


def _load_folder(path: Path, options: CompileOptions, inputs: object) -> Import:
    if (path / "config.json").is_file() or (path / "modules.json").is_file():
        from .huggingface import import_hf_folder

        return import_hf_folder(path, options, inputs)
    if (path / "saved_model.pb").is_file():
        fix = "convert it: python -m tf2onnx.convert --saved-model FOLDER --output model.onnx"
        raise ModelError(str(path), "is a TensorFlow SavedModel, which has no frontend yet", fix)
    if (path / "manifest.json").is_file():
        raise ModelError(str(path), "is an executable folder already", "open it with miaotui.open")
    models = sorted(p.name for p in path.iterdir() if p.suffix in (".onnx", ".pt2", ".keras"))
    fix = f"give the file: {', '.join(models)}" if models else f"give {ACCEPTED}"
    raise ModelError(str(path), "has no config.json, so it is no Hugging Face folder", fix)


def _load_object(source: object, options: CompileOptions, inputs: object) -> Import:
    torch, keras = sys.modules.get("torch"), sys.modules.get("keras")
    if keras is not None and isinstance(source, _class(keras, "Model")):
        from .keras import import_keras

        return import_keras(source, options, inputs)
    if torch is not None and isinstance(source, torch.export.ExportedProgram):
        from .pytorch import import_exported

        return import_exported(source, options, inputs)
    if torch is not None and isinstance(source, torch.nn.Module):
        from .pytorch import import_module, refuse_script

        if isinstance(source, torch.jit.ScriptModule):
            raise refuse_script()
        if not _is_transformers(source):
            return import_module(source, options, inputs)
        from .huggingface import default_inputs, describe_decoder

        if inputs is None and not options.inputs:
            inputs = default_inputs(source)
        imported = import_module(source, options, inputs)
        describe_decoder(imported.program, source)
        return imported
    from .memory import import_memory, is_onnx

    if is_onnx(source):
        return _with_examples(import_memory(source, options), inputs)
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    raise ModelError("model", f"is a {kind}, which has no frontend", f"give {ACCEPTED}")


def reference_of(
    source: object,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    call: Call | None = None,
    layers: Sequence[str] = (),
) -> Reference:
    """The Reference of ``source`` for a signature that is known, without exporting a torch module again.

    Raises: InputError if the source takes or gives something else; ModelError as ``load``.
    """
    torch = sys.modules.get("torch")
    if torch is not None and call is not None and isinstance(source, torch.nn.Module):
        from .pytorch import module_reference

        return module_reference(source, inputs, [spec.name for spec in outputs], call, layers)
    imported = load(source)
    theirs, ours = {s.name for s in imported.program.inputs()}, {s.name for s in inputs}
    if theirs != ours:
        fact = f"takes {', '.join(sorted(theirs))}, the executable {', '.join(sorted(ours))}"
        raise InputError("reference", fact, "give the model it was compiled from")
    return imported.reference


def _is_transformers(module: Any) -> bool:
    """Whether the module is of transformers, which has conventions for inputs and a configuration."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(module, _class(transformers, "PreTrainedModel"))


def _with_examples(imported: Import, inputs: object) -> Import:
    """``imported`` with the examples given for an ONNX model: arrays by name, or in the inputs' order."""
    import numpy as np

    if inputs is None:
        return imported
    names = [spec.name for spec in imported.program.inputs()]
    if isinstance(inputs, dict):
        given = inputs
    else:
        values = inputs if isinstance(inputs, tuple | list) else (inputs,)
        given = dict(zip(names, values, strict=False))
    if set(given) != set(names):
        fact = f"give {', '.join(map(str, given)) or 'nothing'}"
        raise InputError("inputs", fact, f"the model takes {', '.join(names)}")
    imported.examples = {name: np.asarray(given[name]) for name in names}
    return imported


def _class(module: Any, name: str) -> type:
    found = getattr(module, name, None)
    return found if isinstance(found, type) else type("Absent", (), {})


REFUSED = {
    ".h5": ("is a HDF5 Keras file, which can run code", "save it from Keras 3 as model.keras"),
    ".hdf5": ("is a HDF5 Keras file, which can run code", "save it from Keras 3 as model.keras"),
    ".tflite": ("is a TensorFlow Lite model, which has no frontend", "give the model it was made from"),
    ".pb": ("is a TensorFlow graph, which has no frontend", "convert it to ONNX with tf2onnx"),
    ".safetensors": ("holds weights but no model", "give the folder that has its config.json too"),
    ".mlmodel": ("is a Core ML model, which has no frontend", "give the model it was made from"),
    ".npz": ("holds arrays but no model", f"give {ACCEPTED}"),
    ".json": ("is a JSON file", "give the folder it lies in"),
}
