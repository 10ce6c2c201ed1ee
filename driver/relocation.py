"""A built variant carried from one draft to another, whose weight file lays its tensors elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from ..compiler.artifact import WEIGHTS
from ..compiler.codegen.onnxruntime.backend import serialized
from ..compiler.codegen.tvm.backend import PARAMETERS
from ..compiler.draft import Draft
from ..compiler.manifest import Variant
from ..compiler.weights import WeightStore


def relocated(variant: Variant, source: Path, draft: Draft, name: str) -> Variant:
    """The variant's files moved from the draft at ``source`` into ``draft``, as its variant ``name``.

    Tensors that it reads of the shared weight file are copied; models and settings say where they lie now.
    """
    old = next(iter(variant.files)).split("/")[1]
    folder = draft.variant(name)
    shutil.rmtree(folder)
    shutil.move(source / "variants" / old, folder)

    def moved(file: str) -> str:
        return file.replace(f"variants/{old}/", f"variants/{name}/", 1)

    weights = source / WEIGHTS
    segments = {
        entry: tuple(
            replace(part, file=moved(part.file), settings=_settings(part.settings, weights, draft.weights))
            for part in parts
        )
        for entry, parts in variant.segments.items()
    }
    for file in {part.file for parts in segments.values() for part in parts if part.backend == "ort"}:
        _rewrite(draft.path / file, weights, draft.weights)
    return replace(
        variant,
        entries={entry: moved(file) for entry, file in variant.entries.items()},
        settings=_settings(variant.settings, weights, draft.weights),
        segments=segments,
    )


def _settings(settings: Mapping[str, str], weights: Path, store: WeightStore) -> dict[str, str]:
    """With the places of a TVM library's parameters as they are in ``store``."""
    if PARAMETERS not in settings:
        return dict(settings)
    table = json.loads(settings[PARAMETERS])
    for rows in table.values():
        for row in rows:
            row[0] = store.add(_bytes_at(weights, row[0], row[1])).offset
    return {**settings, PARAMETERS: json.dumps(table, separators=(",", ":"))}


def _bytes_at(weights: Path, offset: int, length: int) -> ir.ExternalTensor:
    shape = ir.Shape([length])
    return ir.ExternalTensor(
        weights.name, offset, length, ir.DataType.UINT8, shape=shape, name="weight", base_dir=weights.parent
    )


def _rewrite(file: Path, weights: Path, store: WeightStore) -> None:
    """An ONNX model with its tensors in ``store``."""
    import onnx

    model = ir.from_proto(onnx.load_model_from_string(file.read_bytes()))
    for graph in model.graphs():
        ir.external_data.set_base_dir(graph, weights.parent)
    file.write_bytes(serialized(model, store))
