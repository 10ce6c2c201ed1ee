"""Frontend for Hugging Face folders: configuration, safetensors and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...compiler.errors import require
from ...compiler.options import CompileOptions
from ..base import Import
from .build import build, build_skeleton
from .decoder import describe_decoder
from .folder import Folder, open_folder
from .inputs import default_inputs
from .module import import_transformers
from .pooling import sentence_module
from .sentence import read_sentence
from .streamed import is_large, stream
from .task import describe_task
from .tokenizer import tokenizer_assets


def import_hf_folder(path: Path, options: CompileOptions, inputs: object = None) -> Import:
    """Import the model in a Hugging Face or sentence-transformers folder; the latter with its pooling.

    Without ``inputs`` it is called as ``default_inputs`` says; an ``--input`` spec reshapes or adds one.
    The tokenizer's files become the program's assets. Weights are read when they are written.

    Raises: ModelError for a damaged, pickled or refused folder; UnsupportedError; and as ``import_module``.
    """
    folder, sentence = open_folder(path), read_sentence(path)

    def whole(module: Any) -> Any:
        return sentence_module(module, sentence.steps) if sentence else module

    empty = build_skeleton(folder)
    if empty is None:
        module = build(folder)
        imported = import_transformers(whole(module), options, inputs)
    else:
        module = empty.module
        stored = empty.weights({name: _tensor(folder, name) for name in empty.sources.values()})

        def streamed() -> Any:
            return whole(stream(empty, lambda name: folder.tensors[name].read(ir.DataType.FLOAT)))

        imported = import_transformers(
            whole(module),
            options,
            inputs,
            stored,
            lambda: whole(build(folder)),
            streamed if is_large(empty) else None,
        )
    program = imported.program
    version = require("transformers", extra="huggingface").__version__
    program.source |= {"framework": f"transformers {version}", "path": str(path)}
    program.assets = tokenizer_assets(folder.path, folder.assets, bool(sentence and sentence.lowercase))
    describe_decoder(program, module)
    describe_task(program, module, sentence)
    return imported


def _tensor(folder: Folder, name: str) -> ir.TensorProtocol:
    stored = folder.tensors[name]
    return stored.tensor(name, ir.DataType.FLOAT if stored.dtype.is_floating_point() else None)


__all__ = ["default_inputs", "describe_decoder", "import_hf_folder"]
