"""The weight file of a native model: packed weights and plain tensors, each once, at 64-byte offsets."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...errors import ArtifactError
from ...reference import Array
from .constants import array_of, key_of, name_of, plain
from .pack import PackedWeight, pack_weight
from .sizes import c_name

ALIGNMENT = 64
HEADER = struct.Struct("<8sIIQ32s8x")
"""``weights_header`` of kernels/program.h."""

MAGIC, VERSION = b"MIAOTUI\0", 1


@dataclass(slots=True)
class Region:
    """A tensor of the file: what it is called in C, its bytes, and once it is placed, its offset."""

    name: str
    size: int
    chunks: Callable[[], Iterator[Array]]
    offset: int = -1


class WeightFile:
    """Collects what entries read, then gives offsets to what is still read, and writes it.

    Memory: one chunk of one tensor at a time.
    """

    __slots__ = ("_names", "_packed", "_placed", "_plain", "regions", "size")

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.size = HEADER.size
        self._names: set[str] = set()
        self._packed: dict[Hashable, tuple[int, PackedWeight]] = {}
        self._plain: dict[Hashable, int] = {}
        self._placed: list[Region] = []

    def packed(self, values: tuple[ir.Value, ...]) -> tuple[int, PackedWeight]:
        """A weight, or the gate and up weights of a gated layer: its region and what it is."""
        key = tuple(key_of(v) for v in values)
        if key not in self._packed:
            weight = pack_weight(*values)
            name = "_and_".join([name_of(values[0]), *(name_of(v).split(".")[-2:][0] for v in values[1:])])
            self._packed[key] = self._add(name, weight.size, weight.chunks), weight
        return self._packed[key]

    def plain(self, value: ir.Value) -> int:
        """The region of a constant's plain copy: floats in 32 bits."""
        key = key_of(value)
        if key not in self._plain:
            dtype = value.dtype
            assert dtype is not None and value.shape is not None
            itemsize = 4 if dtype.is_floating_point() else max(1, int(dtype.itemsize))
            size = itemsize * int(np.prod(value.shape.numpy(), dtype=np.int64))
            self._plain[key] = self._add(
                name_of(value), size, lambda: iter([plain(array_of(value)).reshape(-1).view(np.uint8)])
            )
        return self._plain[key]

    def _add(self, name: str, size: int, chunks: Callable[[], Iterator[Array]]) -> int:
        unique = c_name(f"at_{name}", self._names)
        self._names.add(unique)
        self.regions.append(Region(unique, size, chunks))
        return len(self.regions) - 1

    def place(self, index: int) -> Region:
        """Give a region its place behind those placed before: in the order in which a run reads them."""
        region = self.regions[index]
        if region.offset < 0:
            region.offset = -(-self.size // ALIGNMENT) * ALIGNMENT
            self.size = region.offset + region.size
            self._placed.append(region)
        return region

    @property
    def placed(self) -> list[Region]:
        """Regions of the file in order."""
        return self._placed

    def write(self, path: Path, code: str) -> bytes:
        """Write header and regions; the fingerprint of ``code`` and all that was written.

        Raises: ArtifactError if the file can't be written.
        """
        digest = hashlib.sha256(code.encode())
        try:
            with path.open("wb") as file:
                file.write(bytes(HEADER.size))
                for region in self._placed:
                    file.write(bytes(region.offset - file.tell()))
                    for chunk in region.chunks():
                        data = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data
                        digest.update(data)
                        file.write(data)
                    if file.tell() != region.offset + region.size:
                        raise AssertionError(f"{region.name}: packed in another size than announced")
                fingerprint = digest.digest()
                file.seek(0)
                file.write(HEADER.pack(MAGIC, VERSION, 0, self.size, fingerprint))
        except OSError as error:
            raise ArtifactError(
                str(path), f"can't be written: {error.strerror}", "free space there"
            ) from error
        return fingerprint
