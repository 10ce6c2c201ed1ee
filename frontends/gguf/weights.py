"""A GGUF tensor as a weight: plain floats, or quantized blocks exactly as they are, decoded when read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...compiler.errors import InternalError
from ...compiler.ir.quantized import BlockedWeight
from ...compiler.reference import Array
from ..pytorch.weights import Weight
from ..stored import Stored, open_file, read_at
from .blocks import Parts
from .header import TensorInfo

_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of a GGUF file. ``rows``: its row for each of the weight's; ``add``: added to every value."""

    path: Path
    info: TensorInfo
    rows: Array | None = None
    add: float = 0.0

    def weight(self) -> Weight:
        """The weight: quantized blocks if the file has them and nothing is added, else float32."""
        info = self.info
        if info.block.decode is not None and len(info.shape) == 2 and not self.add:
            return self._blocked()
        if info.block.decode is None and self.rows is None and not self.add:
            return self._stored.tensor(info.name, ir.DataType.FLOAT)
        return _lazy(info.name, ir.DataType.FLOAT, info.shape, lambda: ir.Tensor(self.numpy()))

    def numpy(self) -> Array:
        """The whole weight as float32."""
        info = self.info
        if info.block.decode is None:
            array = self._stored.read(ir.DataType.FLOAT)
        else:
            array = np.empty(info.shape, np.float32)
            flat = array.reshape(-1, info.block.elements)
            for start, parts in self._decoded():
                flat[start : start + len(parts.data)] = _dequantized(parts, info.block.size)
        array = array if self.rows is None else array[self.rows]
        return array + np.float32(self.add) if self.add else array

    @property
    def _stored(self) -> Stored:
        return Stored(self.path, self.info.offset, self.info.block.dtype, self.info.shape)

    def _blocked(self) -> BlockedWeight:
        info, block = self.info, self.info.block
        rows, columns = info.shape
        scales = (rows, columns // block.size)
        return BlockedWeight(
            data=_lazy(f"{info.name}.data", block.dtype, info.shape, self._data),
            scale=_lazy(f"{info.name}.scale", ir.DataType.FLOAT, scales, lambda: self._part("scale")),
            zero_point=None,
            offset=_lazy(f"{info.name}.offset", ir.DataType.FLOAT, scales, lambda: self._part("offset"))
            if block.has_offset
            else None,
            block=block.size,
        )

    def _data(self) -> ir.TensorProtocol:
        """The quantized values; four-bit ones packed, the first in the low half."""
        rows, columns = self.info.shape
        dtype = self.info.block.dtype
        if dtype.bitwidth == 8:
            return ir.Tensor(self._gathered("data", np.dtype(dtype.numpy()), columns))
        packed = self._gathered("data", np.dtype(np.uint8), columns // 2, packed=True)
        return ir.PackedTensor(packed.reshape(-1), dtype, shape=ir.Shape([rows, columns]))

    def _part(self, name: str) -> ir.TensorProtocol:
        return ir.Tensor(
            self._gathered(name, np.dtype(np.float32), self.info.shape[1] // self.info.block.size)
        )

    def _gathered(self, name: str, dtype: np.dtype[Any], width: int, packed: bool = False) -> Array:
        blocks = math.prod(self.info.shape) // self.info.block.elements
        rows = self.info.shape[0]
        made = np.empty((blocks, rows * width // blocks), dtype)
        for start, parts in self._decoded():
            part = getattr(parts, name)
            if packed:
                part = part[:, ::2].view(np.uint8) & 15 | part[:, 1::2].view(np.uint8) << 4
            made[start : start + len(part)] = part
        made = made.reshape(rows, width)
        return made if self.rows is None else made[self.rows]

    def _decoded(self) -> Iterator[tuple[int, Parts]]:
        """The first block's index and the parts of one piece of the tensor after another."""
        block = self.info.block
        if block.decode is None:
            raise InternalError(f"{block.name} tensors have no blocks")
        count, step = self.info.nbytes // block.nbytes, max(1, _CHUNK // block.nbytes)
        with open_file(self.path) as file:
            for start in range(0, count, step):
                length = min(step, count - start) * block.nbytes
                raw = read_at(file.fileno(), self.info.offset + start * block.nbytes, length, self.path)
                yield start, block.decode(np.frombuffer(raw, np.uint8).reshape(-1, block.nbytes))


def _dequantized(parts: Parts, size: int) -> Array:
    values: Array = parts.data.reshape(len(parts.data), -1, size) * parts.scale[..., None]
    if parts.offset is not None:
        values += parts.offset[..., None]
    return values.reshape(len(parts.data), -1)


def _lazy(
    name: str, dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], ir.TensorProtocol]
) -> ir.LazyTensor:
    return ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=name)
