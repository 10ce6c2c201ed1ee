"""A tensor in a file: where it lies, and how it is read without mapping the file."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..compiler.errors import ModelError
from ..compiler.reference import Array

_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """A row-major little-endian tensor: ``nbytes`` bytes at ``offset`` of the file ``path``."""

    path: Path
    offset: int
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * self.dtype.bitwidth // 8

    def read(self, dtype: ir.DataType | None = None) -> Array:
        """The tensor as ``dtype`` (its own by default), converted while it is read.

        Pages of a mapped file count as memory of the process; bytes read into a buffer are gone with it.
        Raises: ModelError if the file can't be read or ends early.
        """
        wanted = self.dtype if dtype is None else dtype
        array = np.empty(math.prod(self.shape), wanted.numpy())
        item = self.dtype.bitwidth // 8
        step = _CHUNK // item
        with open_file(self.path) as file:
            for start in range(0, array.size, step):
                count = min(step, array.size - start)
                chunk = read_at(file.fileno(), self.offset + start * item, count * item, self.path)
                array[start : start + count] = _converted(chunk, self.dtype, wanted)
        return array.reshape(self.shape)

    def tensor(self, name: str, dtype: ir.DataType | None = None) -> ir.TensorProtocol:
        """A tensor that is read when it is needed: external data if ``dtype`` is its own, else lazy."""
        shape = ir.Shape(self.shape)
        if dtype is None or dtype == self.dtype:
            folder, file = self.path.parent, self.path.name
            return ir.ExternalTensor(
                file, self.offset, self.nbytes, self.dtype, shape=shape, name=name, base_dir=folder
            )
        return ir.LazyTensor(lambda: ir.Tensor(self.read(dtype)), dtype=dtype, shape=shape, name=name)

    @classmethod
    def of(cls, tensor: ir.ExternalTensor) -> Stored:
        """Where external data lies."""
        return cls(Path(tensor.path), tensor.offset or 0, tensor.dtype, tuple(tensor.shape.numpy()))


def same(one: Stored, other: Stored) -> bool:
    """Whether two tensors hold the same bytes, compared piece by piece."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with open_file(one.path) as left, open_file(other.path) as right:
        for start in range(0, one.nbytes, _CHUNK):
            count = min(_CHUNK, one.nbytes - start)
            if read_at(left.fileno(), one.offset + start, count, one.path) != read_at(
                right.fileno(), other.offset + start, count, other.path
            ):
                return False
    return True


def array_of(tensor: ir.TensorProtocol) -> Array:
    """The array of ``tensor``; external data is read, not mapped."""
    return Stored.of(tensor).read() if isinstance(tensor, ir.ExternalTensor) else tensor.numpy()


def read_at(descriptor: int, offset: int, length: int, path: Path) -> bytearray:
    """``length`` bytes at ``offset``. Raises: ModelError if the file can't be read or ends before them."""
    buffer = bytearray(length)
    view, done = memoryview(buffer), 0
    try:
        while done < length:
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if not count:
                fact = f"ends {length - done} bytes before the end of a tensor"
                raise ModelError(str(path), fact, "copy the model again")
            done += count
    except OSError as error:
        raise ModelError(str(path), f"can't be read: {error.strerror}") from error
    return buffer


def open_file(path: Path) -> io.FileIO:
    """The file, open for reading. Raises: ModelError if it can't be opened."""
    try:
        return io.FileIO(path)
    except OSError as error:
        raise ModelError(str(path), f"can't be read: {error.strerror}") from error


def _converted(data: bytearray, stored: ir.DataType, wanted: ir.DataType) -> Array:
    if stored == ir.DataType.BFLOAT16 and wanted == ir.DataType.FLOAT:
        # The upper half of a float32's bits; ml_dtypes converts element by element.
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, stored.numpy()).astype(wanted.numpy(), copy=False)
