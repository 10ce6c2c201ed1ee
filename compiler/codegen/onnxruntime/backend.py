"""The ONNX Runtime backend: one ONNX file per entry, large tensors in the shared weight file."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ...errors import ModelError
from ...manifest import IN_PLACE, ROW_BY_ROW
from ...options import Target
from ...program import LAYOUT, Program
from ...weights import WeightStore
from ..base import Build
from . import kernels
from .settings import NHWC, settings_for
from .state import is_in_place, is_row_by_row

INLINE = 1024
"""Tensors of fewer bytes stay in the model: ONNX Runtime folds shapes only from those."""

IR_VERSION = 10
"""The first ONNX IR version that keeps node metadata, where the sources are."""

_MAX_MODEL = (2 << 30) - (1 << 20)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeBackend:
    """Writes what ``runtime/onnxruntime.py`` opens; every model that onnxruntime takes, CPU and CUDA.

    The models name the weight file without a folder: ONNX Runtime refuses external data outside the model's
    folder, so the runner tells it the folder by ``session.model_external_initializers_file_folder_path``. The
    file is mapped, not read.
    """

    name = "ort"

    def supports(self, node: ir.Node, target: Target) -> str | None:
        """None if ONNX Runtime has a kernel for ``node`` on ``target``, else the reason it has not."""
        return kernels.find(_PROVIDERS[target.device], node)

    def build(self, program: Program, target: Target, folder: Path, weights: WeightStore) -> Build:
        """Write ``<entry>.onnx`` for every entry into ``folder``, large tensors into ``weights``.

        Raises: ModelError if a model is over 2 GB without its weights or its weights can't be read,
        ArtifactError if the weight file can't be written.
        """
        entries = {}
        for entry, model in program.entries.items():
            opset = kernels.emission_opset("CUDA", model) if target.device == "cuda" else None
            data = serialized(model, weights, opset)
            if len(data) > _MAX_MODEL:
                fact = f"is {len(data) >> 20} MiB without its weights, ONNX ends at 2048"
                raise ModelError(f"entry {entry!r}", fact, "turn large Constant attributes into initializers")
            entries[entry] = f"{entry}.onnx"
            (folder / entries[entry]).write_bytes(data)
        settings = settings_for(target)
        if target.device == "cuda" and any(m.metadata_props.get(LAYOUT) for m in program.entries.values()):
            settings |= NHWC
        if program.decoding is not None:
            stepping = program.entries[program.decoding.entry]
            if is_in_place(stepping, program.decoding):
                settings[IN_PLACE] = "1"
            if target.device == "cuda" and is_row_by_row(stepping):
                settings[ROW_BY_ROW] = "1"
        return Build(entries, settings)


def serialized(model: ir.Model, weights: WeightStore, opset: int | None = None) -> bytes:
    """``model`` as ONNX bytes whose large initializers lie in ``weights``; ``model`` is left as it was.

    ``opset``: default opset to declare, from ``kernels.emission_opset``; by default the model's own.
    """
    copy = model.clone()
    if opset is not None:
        copy.opset_imports[""] = opset
    copy.ir_version = max(copy.ir_version, IR_VERSION)
    for graph in copy.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= INLINE:
                value.const_value = _stored(tensor, value.name or "", weights)
            elif isinstance(tensor, ir.ExternalTensor):  # the source's file does not travel along
                value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)
    data: bytes = ir.serde.serialize_model(copy).SerializeToString()
    return data


def _stored(tensor: ir.TensorProtocol, name: str, weights: WeightStore) -> ir.ExternalTensor:
    region = weights.add(tensor)
    shape = ir.Shape(tensor.shape.numpy())
    return ir.ExternalTensor(
        weights.path.name,
        region.offset,
        region.length,
        tensor.dtype,
        shape=shape,
        name=name,
        base_dir=weights.path.parent,
    )
