"""Import an ONNX model that lies in memory, through a temporary file that its reference keeps."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..compiler.options import CompileOptions
from .base import Import
from .onnx import import_onnx

_PROTOBUF_LIMIT = 2**31 - 1


def is_onnx(source: object) -> bool:
    """Whether ``source`` is an ``onnx.ModelProto`` or ``onnx_ir.Model``."""
    return isinstance(source, ir.Model) or type(source).__name__ == "ModelProto"


def import_memory(source: Any, options: CompileOptions) -> Import:
    """Import an ``onnx.ModelProto`` or ``onnx_ir.Model``. Raises: as ``import_onnx``."""
    folder = Path(tempfile.mkdtemp(prefix="miaotui-model-"))
    path = folder / "model.onnx"
    if not isinstance(source, ir.Model) and source.ByteSize() < _PROTOBUF_LIMIT:
        path.write_bytes(source.SerializeToString())  # as it is: a malformed one is refused with its reasons
    else:
        model = source.clone() if isinstance(source, ir.Model) else ir.from_proto(source)
        ir.save(model, path, external_data="model.data", size_threshold_bytes=1024)
    imported = import_onnx(path, options)
    imported.program.source.pop("path", None)
    weakref.finalize(imported.reference, _remove, folder)
    return imported


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
