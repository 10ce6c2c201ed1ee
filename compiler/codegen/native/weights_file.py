"""The weight file of a native model: packed weights and plain tensors, each once, at 64-byte offsets."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeAlias

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

Values: TypeAlias = "Sequence[ir.Value]"

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

    __slots__ = ("_forms", "_names", "_packed", "_placed", "_plain", "regions", "size")

    def __init__(self) -> None:
        self.regions: list[Region] = []
        self.size = HEADER.size
        self._names: set[str] = set()
        self._forms: dict[Hashable, PackedWeight] = {}
        self._packed: dict[Hashable, tuple[int, PackedWeight]] = {}
        self._plain: dict[Hashable, int] = {}
        self._placed: list[Region] = []

    def packing(self, values: Values) -> PackedWeight:
        """How a weight, or the gate and up weights of a gated layer, is packed."""
        key = tuple(key_of(v) for v in values)
        if key not in self._forms:
            self._forms[key] = pack_weight(*values)
        return self._forms[key]

    def packed(self, weights: Sequence[Values]) -> tuple[int, PackedWeight]:
        """The region of weights of one packing, one behind the other as if they were one; what they are."""
        key = tuple(tuple(key_of(v) for v in values) for values in weights)
        if key not in self._packed:
            forms = [self.packing(values) for values in weights]
            whole = replace(
                forms[0],
                rows=sum(f.rows for f in forms),
                size=sum(f.size for f in forms),
                chunks=lambda: chain.from_iterable(f.chunks() for f in forms),
            )
            name = _joined_name([v for values in weights for v in values])
            self._packed[key] = self._add(name, whole.size, whole.chunks), whole
        return self._packed[key]

    def plain(self, values: Values) -> int:
        """The region of plain copies of constants, one behind the other: floats in 32 bits."""
        key = tuple(key_of(v) for v in values)
        if key not in self._plain:
            size = sum(_plain_bytes(v) for v in values)
            self._plain[key] = self._add(
                _joined_name(values),
                size,
                lambda: (plain(array_of(v)).reshape(-1).view(np.uint8) for v in values),
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


def _plain_bytes(value: ir.Value) -> int:
    assert value.dtype is not None and value.shape is not None
    itemsize = 4 if value.dtype.is_floating_point() else max(1, int(value.dtype.itemsize))
    return itemsize * math.prod(value.shape.numpy())


def _joined_name(values: Values) -> str:
    """``model.layers.0.self_attn.q_proj.weight_and_k_proj`` of several tensors."""
    first, *others = map(name_of, values)
    return "_and_".join([first, *(other.split(".")[-2:][0] for other in others)])
