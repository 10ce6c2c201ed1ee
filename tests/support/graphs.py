"""Graphs written as ONNX text with constants as arrays: as tf2onnx, old torch and people write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from miaotui.compiler.program import Program
from miaotui.frontends.onnx import program_from_model
from onnx import numpy_helper, parser

_RANDOM = np.random.default_rng(7)


def graph(signature: str, body: str, opset: int = 23, **constants: Any) -> Program:
    """An imported program of ``signature`` (``(float[n] x) => (float[n] y)``) and the statements of ``body``.

    ``constants`` become initializers: arrays as they are, numbers float32 and lists int64.
    """
    text = f'<ir_version: 10, opset_import: ["": {opset}]> g {signature} {{ {body} }}'
    proto: onnx.ModelProto = parser.parse_model(text)
    for name, value in constants.items():
        array = np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype(np.int64 if isinstance(value, list) else np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return program_from_model(ir.from_proto(proto))


def normal(*shape: int) -> np.ndarray[Any, Any]:
    """float32 of unit scale; every call draws on."""
    return _RANDOM.standard_normal(shape).astype(np.float32)
