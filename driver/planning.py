"""The network a plan is made for, as its files describe it; weights are not read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..compiler.errors import ModelError
from ..compiler.planner.config import network_of
from ..compiler.planner.network import Network
from ..compiler.planner.precision import STORED
from ..compiler.program import Program

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
"""Precisions by a configuration's name for them."""


def described(source: str) -> tuple[Network, str]:
    """The network of a configuration, a folder with one, a GGUF file or any model; and its precision.

    Raises: ModelError for what describes none; UnsupportedError as the source's frontend says.
    """
    path = Path(source)
    if path.name == "config.json" and path.is_file():
        path = path.parent
    if path.is_dir() and (path / "config.json").is_file():
        return _folder(path)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return _gguf(path)
    if path.is_dir() and (path / "manifest.json").is_file():
        raise ModelError(str(path), "is an executable folder", "give the model it was compiled from")
    if not path.exists():
        fix = "give a folder with config.json, a GGUF file or a model on this machine; nothing is downloaded"
        raise ModelError(source, "does not exist", fix)
    from ..frontends.load import load

    return network_of_program(load(path).program, path.stem), "fp32"


def _folder(path: Path) -> tuple[Network, str]:
    from ..frontends.huggingface.folder import read_json

    config: Any = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise ModelError(f"{path.name}/config.json", "is no JSON object", "download the model again")
    stored = sum(file.stat().st_size for file in path.glob("*.safetensors")) or None
    network = network_of(config, path.resolve().name, stored)
    if "quantization_config" in config and stored:
        return network, STORED
    named = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return network, DTYPES.get(named, "bf16")


def _gguf(path: Path) -> tuple[Network, str]:
    from ..frontends.gguf.architecture import architecture_of
    from ..frontends.gguf.config import config_of
    from ..frontends.gguf.header import read_header

    header = read_header(path)
    prefix, architecture = architecture_of(header)
    stored = float(sum(tensor.nbytes for tensor in header.tensors.values()))
    return network_of(config_of(header, prefix, architecture), path.stem, stored), STORED


def network_of_program(program: Program, name: str) -> Network:
    """An imported program as a network that takes samples: replicas and stages of it, no ranks.

    A layer is a node with weights; what is handed on is their outputs' mean size. Sizes that are not given
    are small ones.
    """
    from ..compiler.cost import program_cost
    from ..compiler.cost.concrete import concrete_model

    table = program_cost(program)
    graph = concrete_model(program.main, table.sizes).graph
    weights = {value.name: value.const_value for value in graph.initializers.values() if value.const_value}
    parameters = float(sum(math.prod(tensor.shape.numpy()) for tensor in weights.values()))
    sizes = [
        math.prod(size for size in node.outputs[0].shape if isinstance(size, int))
        for node in graph
        if any(value is not None and value.name in weights for value in node.inputs)
        and node.outputs[0].shape is not None
    ]
    if not sizes:
        raise ModelError(name, "has no node with weights", "give a model that has some")
    layers = len(sizes)
    return Network(
        name=name,
        kind="graph",
        layers=layers,
        hidden=max(round(sum(sizes) / layers), 1),
        heads=0,
        kv_heads=0,
        head_width=0,
        kv_width=0,
        inner=0,
        vocabulary=0,
        dense=parameters / layers,
        kernels=1,
        flops=table.flops,
        stored=float(sum(tensor.nbytes for tensor in weights.values())),
    )
