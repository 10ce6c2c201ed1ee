"""A tensor at an address of a device as a dlpack capsule: what lies inside another one, without an offset."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4
"""DLDataTypeCode."""


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_alive: dict[int, tuple[object, ...]] = {}
"""What capsules that were taken need, by the address of their structure."""

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def _delete(address: int) -> None:
    _alive.pop(address, None)


_deleted = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)


@dataclass(frozen=True, slots=True)
class At:
    """Contiguous numbers from ``address`` on, which ``owner`` keeps alive. ``device``: type and number."""

    address: int
    shape: Sequence[int]
    dtype: np.dtype[Any]
    device: tuple[int, int]
    owner: object

    def __dlpack_device__(self) -> tuple[int, int]:
        """Type and number."""
        return self.device

    def __dlpack__(self, **_: object) -> Any:
        """A capsule, for one who takes it."""
        code = _BFLOAT if self.dtype.name == "bfloat16" else _CODES[self.dtype.kind]
        sizes = (ctypes.c_int64 * max(len(self.shape), 1))(*self.shape)
        made = _Managed()
        tensor = made.tensor
        tensor.data, (tensor.device_type, tensor.device_id) = self.address, self.device
        tensor.ndim, tensor.shape = len(self.shape), sizes
        tensor.code, tensor.bits, tensor.lanes = code, self.dtype.itemsize * 8, 1
        made.deleter = ctypes.cast(_deleted, ctypes.c_void_p).value
        address = ctypes.addressof(made)
        _alive[address] = (made, sizes, self.owner)
        return _new_capsule(address, b"dltensor", None)
