"""Tensors that stay where they are: dlpack in and out of a session, and dtypes numpy has no name for."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ..compiler.program import TensorSpec
from ..compiler.reference import Array, Arrays

_CUDA = 2  # kDLCUDA of the dlpack standard


def on_gpu(value: object) -> bool:
    """Whether ``value`` is a tensor in CUDA memory."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack_device__"):
        return False
    return int(value.__dlpack_device__()[0]) == _CUDA


def described(value: Any) -> Array:
    """An array of the tensor's shape and dtype without its contents, to check it where it lies."""
    dtype = np.dtype(str(value.dtype).rpartition(".")[2])  # torch.float32, onnxruntime's float32
    return np.broadcast_to(np.zeros((), dtype), value.shape)


def run_device(ort: Any, session: Any, inputs: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Run ``inputs`` (dlpack tensors or arrays) without copying them; outputs stay on ``device``.

    Outputs are torch tensors if torch is loaded, else ONNX Runtime values that speak dlpack.
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and device == "cuda":
        torch.cuda.synchronize()  # ONNX Runtime runs on a stream of its own
    binding = session.io_binding()
    held = []
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            binding.bind_cpu_input(name, value)
            continue
        value = value.contiguous() if hasattr(value, "contiguous") else value
        held.append(_from_dlpack(ort, value))
        binding.bind_ortvalue_input(name, held[-1])
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    names = [output.name for output in session.get_outputs()]
    return {n: to_torch(v, torch) for n, v in zip(names, binding.get_outputs(), strict=True)}


def _from_dlpack(ort: Any, value: Any) -> Any:
    value = value.detach() if hasattr(value, "detach") else value
    if hasattr(ort.OrtValue, "from_dlpack"):
        return ort.OrtValue.from_dlpack(value)
    state = ort.capi.onnxruntime_pybind11_state  # before 1.30 only the inner class had it
    return ort.OrtValue(state.OrtValue.from_dlpack(value.__dlpack__(), str(value.dtype).endswith("bool")))


def to_torch(value: Any, torch: Any) -> Any:
    """An ONNX Runtime value as a torch tensor; itself without torch."""
    if torch is None:
        return value
    tensor = view(value, torch)
    return tensor.to(torch.bool) if value.data_type() == "tensor(bool)" else tensor


def view(value: Any, torch: Any) -> Any:
    """The memory of an ONNX Runtime value as a torch tensor; truth values are bytes."""
    return torch.utils.dlpack.from_dlpack(value._get_c_value().to_dlpack())


def is_foreign(spec: TensorSpec) -> bool:
    """Whether numpy itself lacks the dtype, so that ONNX Runtime can't take or give it as an array."""
    return spec.dtype != ir.DataType.STRING and spec.dtype.numpy().isbuiltin != 1


def run_values(ort: Any, session: Any, arrays: Arrays, inputs: Sequence[TensorSpec]) -> list[Array]:
    """``session.run`` for models with bfloat16 or smaller floats among their inputs or outputs."""
    dtypes = {spec.name: spec.dtype for spec in inputs}
    values = {name: _value(ort, array, dtypes[name]) for name, array in arrays.items()}
    outputs = session.run_with_ort_values(None, values)
    return [_array(value) for value in outputs]


def _value(ort: Any, array: Array, dtype: ir.DataType) -> Any:
    if dtype == ir.DataType.STRING or array.dtype.isbuiltin == 1:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(dtype))


def _array(value: Any) -> Array:
    dtype = ir.DataType(value.element_type())
    if dtype == ir.DataType.STRING or dtype.numpy().isbuiltin == 1:
        return np.asarray(value.numpy())
    size = value.tensor_size_in_bytes()
    raw = (ctypes.c_uint8 * size).from_address(value.data_ptr()) if size else b""
    return np.frombuffer(bytes(raw), dtype.numpy()).reshape(value.shape())
