"""Tensors of TVM's runtime over arrays, and the runtime itself: ``import tvm`` is never needed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..compiler.codegen.tvm.versions import require_ffi
from ..compiler.errors import ToolError
from ..compiler.reference import Array

RUNTIME = "MIAOTUI_TVM_RUNTIME"
"""Environment variable: where libtvm_runtime.so lies, if the package apache-tvm is not installed."""

_BFLOAT16 = ir.DataType.BFLOAT16.numpy()


@cache
def runtime() -> Any:
    """The module ``tvm_ffi`` with TVM's runtime loaded. Raises: ToolError if one of the two is missing."""
    ffi = require_ffi()
    # else TVM counts processors in /sys whenever threads are to share a loop, 20 microseconds, and takes half
    os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))
    place = str(runtime_library("libtvm_runtime.so"))
    try:
        ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ToolError(
            "libtvm_runtime.so", f"can't be loaded: {error}", f"set {RUNTIME} to its path"
        ) from error
    return ffi


def runtime_library(name: str) -> Path:
    """Where a library of TVM's runtime lies. Raises: ToolError if no TVM is installed."""
    named = os.environ.get(RUNTIME)
    if named is not None:
        return Path(named) if Path(named).name == name else Path(named).with_name(name)
    spec = importlib.util.find_spec("tvm")
    if spec is None or spec.origin is None:
        raise ToolError("apache-tvm", "is not installed", f"pip install 'miaotui[tvm]', or set {RUNTIME}")
    return Path(spec.origin).parent / "lib" / name


def tensor_of(array: Array) -> Any:
    """The array as TVM takes it, sharing its memory; numpy gives bfloat16 to nobody: it goes as integers."""
    ffi = runtime()
    if array.dtype != _BFLOAT16:
        return ffi.from_dlpack(array)
    view = ffi.get_global_func("runtime.TVMTensorCreateView")
    return view(ffi.from_dlpack(array.view(np.uint16)), ffi.Shape(array.shape), ffi.dtype("bfloat16"), 0)


def array_of(tensor: Any) -> Array:
    """A tensor in main memory as an array, sharing its memory."""
    if tensor.dtype != "bfloat16":
        return np.from_dlpack(tensor)
    ffi = runtime()
    view = ffi.get_global_func("runtime.TVMTensorCreateView")
    return np.from_dlpack(view(tensor, tensor.shape, ffi.dtype("uint16"), 0)).view(_BFLOAT16)


def reader_of(dtype: ir.DataType) -> Callable[[Any], Array]:
    """``array_of`` for tensors of one dtype."""
    return array_of if dtype == ir.DataType.BFLOAT16 else np.from_dlpack


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype for TVM's name."""
    return _BFLOAT16 if name == "bfloat16" else np.dtype(name)


def said(text: str) -> str:
    """The last line of a message."""
    return text.strip().splitlines()[-1][:300] if text.strip() else "it says nothing"
