"""The header of a GGUF file: metadata and where tensors lie; every size is checked against the file's."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeAlias

from ...compiler.errors import ModelError, Problem, UnsupportedError
from .blocks import BLOCKS, Block, type_name

Scalar: TypeAlias = int | float | bool | str
Metadata: TypeAlias = dict[str, Scalar | list[Scalar]]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
AGAIN = "download or convert it again"
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_NAME_LIMIT, _DIMENSIONS, _ALIGNMENT_LIMIT = 1 << 16, 4, 1 << 20
_LEAST_PAIR, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the file: ``shape`` with rows first, ``offset`` from the file's start."""

    name: str
    shape: tuple[int, ...]
    block: Block
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) // self.block.elements * self.block.nbytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself."""

    path: Path
    metadata: Metadata
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Read and check the header of ``path``; no tensor's data is read.

    Raises: ModelError for a file that is truncated or contradicts itself, UnsupportedError for versions and
    tensor types that have no reader, all of them at once.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path).header()
    except OSError as error:
        raise ModelError(str(path), f"can't be read: {error.strerror}") from error


class _Reader:
    """A position in the file that never passes its end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path, self.place = file, path, path.name
        self.size = file.seek(0, 2)
        file.seek(0)

    def header(self) -> Header:
        if not self.size:
            raise ModelError(self.place, "is empty", AGAIN)
        magic = self.file.read(4)
        if magic != MAGIC:
            raise ModelError(self.place, f"is no GGUF file: it starts with {magic!r}", AGAIN)
        (version,) = struct.unpack("<I", self.take(4, "version"))
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            fact = "is a big-endian GGUF file" if swapped else f"is GGUF version {version}"
            fix = f"convert it to little-endian version {VERSIONS[-1]}"
            raise UnsupportedError(self.place, fact, fix)
        tensors, pairs = struct.unpack("<QQ", self.take(16, "counts"))
        self.fits(tensors, _LEAST_TENSOR, "tensors")
        self.fits(pairs, _LEAST_PAIR, "metadata entries")
        metadata: Metadata = {}
        for _ in range(pairs):
            key = self.string("a metadata key", _NAME_LIMIT)
            if key in metadata:
                raise ModelError(f"{self.place}: {key!r}", "is given twice", AGAIN)
            (kind,) = struct.unpack("<I", self.take(4, key))
            metadata[key] = self.array(key) if kind == _ARRAY else self.values(key, kind, 1)[0]
        infos = [self.tensor() for _ in range(tensors)]
        return Header(self.path, metadata, self.placed(infos, self.alignment(metadata)))

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            fact = f"ends inside {what}: {count:,} bytes wanted, {self.left:,} left"
            raise ModelError(self.place, fact, AGAIN)
        return self.file.read(count)

    @property
    def left(self) -> int:
        return self.size - self.file.tell()

    def fits(self, count: int, least: int, what: str) -> None:
        if count * least > self.left:
            raise ModelError(self.place, f"declares {count:,} {what}, more than it has bytes for", AGAIN)

    def string(self, what: str, limit: int | None = None) -> str:
        (length,) = struct.unpack("<Q", self.take(8, what))
        if limit is not None and length > limit:
            raise ModelError(self.place, f"{what} is {length:,} bytes long", AGAIN)
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(self.place, f"{what} is no UTF-8 text ({error})", AGAIN) from None

    def values(self, key: str, kind: int, count: int) -> list[Scalar]:
        if kind == _STRING:
            self.fits(count, 8, f"strings in {key!r}")
            return [self.string(repr(key)) for _ in range(count)]
        code = _SCALARS.get(kind)
        if code is None:
            raise ModelError(f"{self.place}: {key!r}", f"has a value of unknown type {kind}", AGAIN)
        width = struct.calcsize(code)
        self.fits(count, width, f"values in {key!r}")
        found: tuple[Scalar, ...] = struct.unpack(f"<{count}{code}", self.take(count * width, repr(key)))
        if kind == _BOOL:
            if not set(found) <= {0, 1}:
                raise ModelError(f"{self.place}: {key!r}", "has a flag that is neither 0 nor 1", AGAIN)
            return [bool(value) for value in found]
        return list(found)

    def array(self, key: str) -> list[Scalar]:
        kind, count = struct.unpack("<IQ", self.take(12, repr(key)))
        if kind == _ARRAY:
            raise UnsupportedError(f"{self.place}: {key!r}", "is an array of arrays", AGAIN)
        return self.values(key, kind, count)

    def alignment(self, metadata: Metadata) -> int:
        found = metadata.get("general.alignment", 32)
        if type(found) is not int or not 0 < found <= _ALIGNMENT_LIMIT or found % 8:
            fact = f"is {found!r}, no multiple of 8 up to {_ALIGNMENT_LIMIT:,}"
            raise ModelError(f"{self.place}: 'general.alignment'", fact, AGAIN)
        return found

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.string("a tensor's name", _NAME_LIMIT)
        (count,) = struct.unpack("<I", self.take(4, f"tensor {name!r}"))
        if count > _DIMENSIONS:
            raise ModelError(f"{self.place}: tensor {name!r}", f"has {count:,} dimensions", AGAIN)
        rest = struct.unpack(f"<{count}QIQ", self.take(8 * count + 12, f"tensor {name!r}"))
        return name, tuple(reversed(rest[:count])), rest[count], rest[count + 1]

    def placed(
        self, infos: list[tuple[str, tuple[int, ...], int, int]], alignment: int
    ) -> dict[str, TensorInfo]:
        """The tensors by name, each within the file and none over another."""
        start = -(-self.file.tell() // alignment) * alignment
        wrong: list[Problem] = []
        unknown: list[Problem] = []
        placed: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in infos:
            where = f"{self.place}: tensor {name!r}"
            block = BLOCKS.get(kind)
            if block is None:
                known = ", ".join(b.name for b in BLOCKS.values())
                unknown.append(
                    Problem(where, f"is of type {type_name(kind)}", f"quantize it to one of {known}")
                )
                continue
            info = TensorInfo(name, shape, block, start + offset)
            fact = self.problem(info, offset % alignment)
            if fact is None and name in placed:
                fact = "is given twice"
            if fact is not None:
                wrong.append(Problem(where, fact, AGAIN))
            placed.setdefault(name, info)
        if wrong:
            raise ModelError.of(wrong)
        if unknown:
            raise UnsupportedError.of(unknown)
        ordered = sorted(placed.values(), key=lambda info: info.offset)
        over = [
            Problem(f"{self.place}: tensor {two.name!r}", f"lies over tensor {one.name!r}", AGAIN)
            for one, two in pairwise(ordered)
            if two.offset < one.offset + one.nbytes
        ]
        if over:
            raise ModelError.of(over)
        return placed

    def problem(self, info: TensorInfo, misaligned: int) -> str | None:
        if not info.shape or 0 in info.shape:
            return f"has the shape {list(info.shape)}"
        if info.shape[-1] % info.block.elements:
            return f"has rows of {info.shape[-1]}, which blocks of {info.block.elements} do not divide"
        if misaligned:
            return "is not aligned"
        end = info.offset + info.nbytes
        if end > self.size:
            return f"needs bytes {info.offset:,} to {end:,}, the file has {self.size:,}"
        return None
