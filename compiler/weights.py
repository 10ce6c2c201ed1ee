"""The weight file of an executable folder: every large tensor once, aligned, shared by all variants."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import numpy as np
import onnx_ir as ir

from .errors import ArtifactError, ModelError
from .program import Program

PAGE = 4096
"""Offsets of tensors of this size or more are multiples of it: some runtimes map whole pages only."""

ALIGNMENT = 64
"""Offsets of smaller tensors: a cache line, and the widest vector load."""

_CHUNK = 4 << 20

Bytes: TypeAlias = "bytes | memoryview"


def stored_bytes(program: Program) -> int:
    """Bytes of the initializers that something reads, each tensor once, however many entries share it."""
    found = {
        id(value.const_value): value.const_value.nbytes
        for model in program.entries.values()
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and (value.uses() or value.is_graph_output())
    }
    return sum(found.values())


@dataclass(frozen=True, slots=True)
class Region:
    """Where a tensor's bytes lie in the weight file."""

    offset: int
    length: int


class WeightStore:
    """Appends tensors to one file; equal bytes are stored once, and at most one tensor is in memory.

    A tensor that lies in a file is copied in chunks without being mapped, so that a model of any size
    is written in constant memory.
    """

    __slots__ = ("_digest", "_file", "_kept", "_places", "_regions", "path", "size")

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("wb", buffering=0)
        except OSError as error:
            raise ArtifactError(str(path), f"can't be written: {error.strerror}") from error
        self.path = path
        self.size = 0
        self._digest = hashlib.sha256()
        self._regions: dict[tuple[int, bytes], Region] = {}
        self._places: dict[object, Region] = {}
        self._kept: list[ir.TensorProtocol] = []  # an id() stays a tensor's own only while the tensor lives

    @property
    def sha256(self) -> str:
        """Hash of the file as written so far."""
        return self._digest.hexdigest()

    def add(self, tensor: ir.TensorProtocol) -> Region:
        """Store ``tensor`` unless its bytes are there already; where they lie.

        Raises: ModelError if the tensor's source file is too short or unreadable, ArtifactError if the
        weight file can't be written.
        """
        place = _place(tensor)
        region = self._places.get(place)
        if region is None:
            region = self._places[place] = self._append(tensor)
            self._kept.append(tensor)
        return region

    def _append(self, tensor: ir.TensorProtocol) -> Region:
        # Written while it is hashed and taken back if it was known: one pass over the bytes, not two.
        end, digest = self.size, self._digest.copy()
        offset = _align(end, tensor.nbytes)
        content = hashlib.sha256()
        try:
            self._write(bytes(offset - end))
            for chunk in chunks(tensor):
                content.update(chunk)
                self._write(chunk)
            region = Region(offset, self.size - offset)
            known = self._regions.setdefault((region.length, content.digest()), region)
            if known is not region:
                self._file.truncate(end)
                self._file.seek(end)
                self.size, self._digest = end, digest
        except OSError as error:
            raise ArtifactError(
                str(self.path), f"can't be written: {error.strerror}", "free space there"
            ) from error
        return known

    def _write(self, data: Bytes) -> None:
        view = memoryview(data)
        self._digest.update(view)
        self.size += len(view)
        while len(view):
            view = view[self._file.write(view) :]

    def close(self) -> None:
        """Flush the file to disk and close it."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()
            self._kept.clear()

    def abandon(self) -> None:
        """Close the file as it is."""
        self._file.close()
        self._kept.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


def _align(offset: int, length: int) -> int:
    step = PAGE if length >= PAGE else ALIGNMENT
    return -(-offset // step) * step


def _place(tensor: ir.TensorProtocol) -> object:
    if isinstance(tensor, ir.ExternalTensor):
        return (tensor.path, tensor.offset or 0, tensor.nbytes)
    return id(tensor)


def chunks(tensor: ir.TensorProtocol) -> Iterator[Bytes]:
    """A tensor's bytes as ONNX stores them: little-endian, row-major, sub-byte types packed.

    Files are read, not mapped. Raises: ModelError if the tensor's is too short or can't be read.
    """
    if isinstance(tensor, ir.LazyTensor):
        # A cached one hands out its array; else only its function keeps the result from living on.
        yield from chunks(ir.Tensor(tensor.numpy(), dtype=tensor.dtype) if tensor.cache else tensor.raw())
    elif isinstance(tensor, ir.ExternalTensor):
        yield from _file_chunks(tensor)
    elif type(tensor) is ir.Tensor and isinstance(tensor.raw, np.ndarray) and tensor.dtype.itemsize >= 1:
        yield np.ascontiguousarray(tensor.raw).reshape(-1).view(np.uint8).data
    else:
        yield tensor.tobytes()


def _file_chunks(tensor: ir.ExternalTensor) -> Iterator[Bytes]:
    left = tensor.nbytes
    try:
        with Path(tensor.path).open("rb", buffering=0) as file:
            file.seek(tensor.offset or 0)
            buffer = memoryview(bytearray(min(_CHUNK, left)))
            while left:
                count = file.readinto(buffer[:left])
                if not count:
                    break
                yield buffer[:count]
                left -= count
    except OSError as error:
        raise ModelError(tensor.path, f"can't be read: {error.strerror}") from error
    if left:
        raise ModelError(
            tensor.path, f"ends {left} bytes before the end of tensor {tensor.name!r}", "copy the model again"
        )
