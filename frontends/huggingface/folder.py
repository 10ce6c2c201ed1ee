"""A Hugging Face model folder: configuration, weights and tokenizer, checked before anything is built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...compiler.errors import ModelError, Problem, UnsupportedError
from ..stored import Stored

ASSETS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
    "chat_template.jinja", "chat_template.json", "generation_config.json", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip
"""Files that travel into the executable folder: tokenizer, chat template, generation settings."""

DTYPES = {
    "F64": ir.DataType.DOUBLE, "F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16, "I64": ir.DataType.INT64, "I32": ir.DataType.INT32,
    "I16": ir.DataType.INT16, "I8": ir.DataType.INT8, "U8": ir.DataType.UINT8, "BOOL": ir.DataType.BOOL,
}  # fmt: skip
"""Element types of safetensors files by their name there."""

GENERATION = "generation_config.json"
"""The one asset that lies beside the manifest, not under ``tokenizer/``."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A checked model folder: its configuration and every tensor of its safetensors files.

    ``bare``: the model is wanted without a head, whatever its configuration names: sentence-transformers
    takes it so.
    """

    path: Path
    config: dict[str, Any]
    tensors: dict[str, Stored]
    bare: bool = False

    @property
    def assets(self) -> dict[str, Path | bytes]:
        """Files to carry along, by their name in the executable folder."""
        found = {name: self.path / name for name in ASSETS if (self.path / name).is_file()}
        return {name if name == GENERATION else f"tokenizer/{name}": path for name, path in found.items()}


def open_folder(path: Path) -> Folder:
    """Check the folder at ``path``; a sentence-transformers folder stands for its transformer.

    Raises: ModelError for missing, damaged or pickled parts and for remote code; UnsupportedError for
    weights that are stored quantized.
    """
    bare = (path / "modules.json").is_file()
    path = _transformer_of(path)
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise ModelError(f"{path.name}/config.json", "is no JSON object", "download the model again")
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method", "an unknown method")
        fix = "give the unquantized model"
        raise UnsupportedError(f"{path.name}/config.json", f"the weights are quantized with {method}", fix)
    tensors: dict[str, Stored] = {}
    for file in _weight_files(path):
        tensors |= _tensors(file)
    return Folder(path, config, tensors, bare)


def read_json(path: Path) -> Any:
    """The JSON file at ``path``. Raises: ModelError if it is missing or does not parse."""
    place = f"{path.parent.name}/{path.name}"
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(place, "does not exist", "give a folder with config.json and safetensors") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(place, f"is no JSON ({error})", "download the model again") from None


def inside(path: Path, name: str) -> Path:
    """The folder ``name`` within ``path``, as modules.json names it. Raises: ModelError if outside."""
    found = (path / name).resolve()
    if not found.is_relative_to(path.resolve()):
        raise ModelError(f"{path.name}/modules.json", f"{name!r} lies outside the folder")
    return found if name else path


def _transformer_of(path: Path) -> Path:
    modules = path / "modules.json"
    if not modules.is_file():
        return path
    listed = read_json(modules)
    for module in listed if isinstance(listed, list) else ():
        if isinstance(module, dict) and str(module.get("type", "")).endswith(".Transformer"):
            return inside(path, str(module.get("path", "")))
    raise ModelError(f"{path.name}/modules.json", "lists no transformer", "give a transformers folder")


def _weight_files(path: Path) -> Iterator[Path]:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map", {}).values()
        missing = []
        for name in dict.fromkeys(map(str, shards)):
            if Path(name).name != name or not (path / name).is_file():
                missing.append(Problem(f"{path.name}/{index.name}", f"shard {name!r} is not in the folder"))
            else:
                yield path / name
        if missing:
            raise ModelError.of(missing)
    elif (path / "model.safetensors").is_file():
        yield path / "model.safetensors"
    else:
        pickled = sorted(p.name for p in [*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])
        if pickled:
            fact = f"holds pickled weights only ({pickled[0]}), which can run code when read"
            fix = "save it with model.save_pretrained(folder), which writes safetensors"
            raise ModelError(path.name, fact, fix)
        raise ModelError(path.name, "holds no model.safetensors", "download the weights too")


def _tensors(file: Path) -> dict[str, Stored]:
    """Where the tensors of a safetensors file lie; the library has checked its header and its length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(file.name, f"is no sound safetensors file ({error})", "download it again") from None
    header.pop("__metadata__", None)
    unknown = sorted({entry["dtype"] for entry in header.values()} - DTYPES.keys())
    if unknown:
        fact = f"holds tensors of type {', '.join(unknown)}"
        raise UnsupportedError(file.name, fact, f"save it as one of {', '.join(DTYPES)}")
    return {
        name: Stored(
            file, 8 + length + entry["data_offsets"][0], DTYPES[entry["dtype"]], tuple(entry["shape"])
        )
        for name, entry in header.items()
    }
