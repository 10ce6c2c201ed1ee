"""Arrays in memory that processes share: a writer's slots, a file each, which readers map."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ...compiler.errors import CompileError
from ...compiler.reference import Array, Arrays

_ALIGNMENT = 64
_SMALLEST = 1 << 16


@dataclass(frozen=True, slots=True)
class Block:
    """Where an array lies: a file of the shared folder, and the place in it. ``dtype``: its name."""

    file: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


Shared: TypeAlias = Block | Array
"""An array elsewhere; or itself, where its elements are no plain memory (strings)."""


class Writer:
    """Writes arrays for others to read. What a slot held is lost when it is written again.

    ``name``: begins its files' names, unique in ``folder``.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self._name = folder, name
        self._maps: dict[int, tuple[str, mmap.mmap]] = {}
        self._made = 0

    def write(self, slot: int, arrays: Mapping[str, Array]) -> dict[str, Shared]:
        """``arrays`` copied into ``slot``; where they lie. Raises: CompileError if shared memory is full."""
        plain = {name: array for name, array in arrays.items() if not array.dtype.hasobject}
        offsets, size = {}, 0
        for name, array in plain.items():
            offsets[name] = size
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        file, memory = self._room(slot, size)
        blocks: dict[str, Shared] = {n: a for n, a in arrays.items() if n not in plain}
        for name, array in plain.items():
            block = blocks[name] = Block(file, offsets[name], array.dtype.name, array.shape)
            _view(memory, block)[...] = array
        return blocks

    def _room(self, slot: int, size: int) -> tuple[str, mmap.mmap]:
        held = self._maps.get(slot)
        if held is not None and len(held[1]) >= size:
            return held
        self._made += 1
        file = f"{self._name}-{slot}-{self._made}"
        length = max(_SMALLEST, 1 << (size - 1).bit_length())
        try:
            memory = _reserved(self.folder / file, length)
        except OSError as error:
            place, fact = str(self.folder.parent), f"can't give {length:,} bytes: {error.strerror}"
            raise CompileError(place, fact, "give smaller inputs, or make the place larger") from error
        if held is not None:
            (self.folder / held[0]).unlink(missing_ok=True)
        self._maps[slot] = file, memory
        return file, memory


def _reserved(path: Path, length: int) -> mmap.mmap:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # all of it at once: a page that is missing later would end the process
        os.posix_fallocate(handle, 0, length)
        return mmap.mmap(handle, length)
    finally:
        os.close(handle)


class Reader:
    """Maps the files of writers and gives their arrays where they lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, tuple[str, mmap.mmap]] = {}

    def read(self, block: Shared) -> Array:
        """The array, not to be written, valid until its slot is written again."""
        if not isinstance(block, Block):
            return block
        slot = block.file.rpartition("-")[0]
        held = self._maps.get(slot)
        if held is None or held[0] != block.file:
            with (self._folder / block.file).open("rb") as file:
                held = self._maps[slot] = block.file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return _view(held[1], block)

    def copies(self, blocks: Mapping[str, Shared]) -> Arrays:
        """Arrays of the caller's own."""
        return {name: self.read(block).copy() for name, block in blocks.items()}


def shared_folder() -> Path:
    """Where files are memory, if there is such a place."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _view(memory: mmap.mmap, block: Block) -> Array:
    count = math.prod(block.shape)
    if count == 0:
        return np.empty(block.shape, block.dtype)
    return np.frombuffer(memory, block.dtype, count, block.offset).reshape(block.shape)
