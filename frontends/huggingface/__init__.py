"""Frontend for Hugging Face folders: configuration, safetensors and tokenizer."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...compiler.errors import require
from ...compiler.options import CompileOptions
from ..base import Import
from .build import build, build_skeleton
from .decoder import describe_decoder
from .folder import Folder, open_folder
from .inputs import default_inputs
from .module import import_transformers


def import_hf_folder(path: Path, options: CompileOptions, inputs: object = None) -> Import:
    """Import the model in a Hugging Face or sentence-transformers folder.

    Without ``inputs`` it is called as ``default_inputs`` says; an ``--input`` spec reshapes or adds one.
    The tokenizer's files become the program's assets. Weights are read when they are written.

    Raises: ModelError for a damaged, pickled or refused folder; UnsupportedError; and as ``import_module``.
    """
    folder = open_folder(path)
    empty = build_skeleton(folder)
    if empty is None:
        module = build(folder)
        imported = import_transformers(module, options, inputs)
    else:
        module = empty.module
        stored = empty.weights({name: _tensor(folder, name) for name in empty.sources.values()})
        imported = import_transformers(module, options, inputs, stored, lambda: build(folder))
    program = imported.program
    version = require("transformers", extra="huggingface").__version__
    program.source |= {"framework": f"transformers {version}", "path": str(path)}
    program.assets = folder.assets
    describe_decoder(program, module)
    return imported


def _tensor(folder: Folder, name: str) -> ir.TensorProtocol:
    stored = folder.tensors[name]
    return stored.tensor(name, ir.DataType.FLOAT if stored.dtype.is_floating_point() else None)


__all__ = ["default_inputs", "import_hf_folder"]
