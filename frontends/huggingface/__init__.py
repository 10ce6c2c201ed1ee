"""Frontend for Hugging Face folders: configuration, safetensors and tokenizer."""

from __future__ import annotations

from pathlib import Path

from ...compiler.errors import require
from ...compiler.options import CompileOptions
from ..base import Import
from ..pytorch import import_module
from ..pytorch.examples import tensor_of
from .build import build
from .folder import open_folder
from .inputs import default_inputs


def import_hf_folder(path: Path, options: CompileOptions, inputs: object = None) -> Import:
    """Import the model in a Hugging Face or sentence-transformers folder.

    Without ``inputs`` it is called as ``default_inputs`` says; an ``--input`` spec reshapes or adds one.
    The tokenizer's files become the program's assets.

    Raises: ModelError for a damaged, pickled or refused folder; UnsupportedError; and as ``import_module``.
    """
    folder = open_folder(path)
    model = build(folder)
    given = inputs
    if inputs is None:
        made: dict[str, object] = dict(default_inputs(model))
        ranges = dict(options.dims)
        made |= {spec.name: tensor_of(spec, ranges) for spec in options.inputs if spec.name not in made}
        inputs = made
    imported = import_module(model, options, inputs, framework="transformers")
    if given is None:
        imported.examples = None
    version = require("transformers", extra="huggingface").__version__
    imported.program.source |= {"framework": f"transformers {version}", "path": str(path)}
    imported.program.assets = folder.assets
    return imported


__all__ = ["default_inputs", "import_hf_folder"]
