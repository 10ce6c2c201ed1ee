"""What CUDA kernels are written with: tiles brought into shared memory, fragments, products in tensor cores.

A fragment is what the 32 threads of a warp hold of a matrix between them, as mma.sync.m16n8k16 wants it: of
a 16 × 16 left factor 8 numbers a thread, of a 16 × 8 right one 4, of 16 × 8 sums 4, those of rows ``lane /
4`` and ``lane / 4 + 8`` and columns ``2 * (lane % 4)`` and the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .build import Body, prim_func

WARP = 32
MMA = 16
"""Rows, columns and depth of a tile that a warp takes from shared memory at a time."""

CHUNK = 8
"""Numbers that a thread copies at a time: 16 bytes."""

_PAD = 8
"""Numbers behind each row of a tile in shared memory: 8 rows then start in different banks."""

DTYPES = {"float16": "fp16", "bfloat16": "bf16"}

_COPY = """
__device__ __forceinline__ void copy_or_zero(void *to, const void *from, bool there) {
  unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  int bytes = there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\\n" :: "r"(at), "l"(from), "r"(bytes));
}
"""
_COMMIT = """
__device__ __forceinline__ void copies_end() { asm volatile("cp.async.commit_group;\\n" ::); }
"""
_WAIT = """
__device__ __forceinline__ void copies_but_%d() { asm volatile("cp.async.wait_group %d;\\n" ::); }
"""
_SHUFFLE = """
__device__ __forceinline__ float from_lane_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
"""


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of the shared memory: ``shape``, padding with it, from ``first`` on."""

    whole: Any
    first: int
    shape: tuple[int, ...]

    def at(self, index: Sequence[Any]) -> Any:
        """Where in ``whole`` a number is."""
        offset: Any = 0
        for size, i in zip(self.shape, index, strict=True):
            offset = offset * size + i
        return offset + self.first


class Device(Body):
    """A kernel's body on a GPU."""

    __slots__ = ("dtype", "shared_bytes")

    def __init__(self, ir: Any, dtype: str) -> None:
        super().__init__(ir)
        self.dtype = dtype
        self.shared_bytes = 0

    def tiles(self, *shapes: tuple[int, ...]) -> list[Tile]:
        """Tiles in shared memory, rows padded against bank conflicts.

        One array holds them all: TVM does not see that copies arrive later than they are started, and would
        let two tiles share memory as soon as one is no longer written.
        """
        padded = [(*outer, columns + _PAD) for *outer, columns in shapes]
        sizes = [math.prod(shape) for shape in padded]
        self.shared_bytes = sum(sizes) * 2
        whole = self.ir.alloc_buffer((sum(sizes),), self.dtype, scope="shared.dyn")
        return [Tile(whole, sum(sizes[:n]), shape) for n, shape in enumerate(padded)]

    def registers(self, *shape: int, dtype: str = "float32") -> Any:
        """An array of one thread's."""
        return self.ir.alloc_buffer(shape, dtype, scope="local")

    def barrier(self) -> None:
        """All threads of the block have come here."""
        from tvm import tirx

        self.ir.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))

    def copy(self, tile: Tile, to: Sequence[Any], source: Any, index: Sequence[Any], there: Any) -> None:
        """Starts copying 8 numbers, or zeros where ``there`` is not; then nothing is read."""
        from tvm import tirx

        target, origin = tile.whole[tile.at(to)], source[tuple(index)]
        self._call("copy_or_zero", _COPY, tirx.address_of(target), tirx.address_of(origin), there)

    def end_copies(self) -> None:
        """What was started since the last time is one group."""
        self._call("copies_end", _COMMIT)

    def wait_for_copies(self, but: int) -> None:
        """All groups but the last ``but`` have arrived, of this thread's."""
        self._call(f"copies_but_{but}", _WAIT % (but, but))

    def _call(self, name: str, source: str, *args: Any) -> None:
        from tvm.backend.cuda.op import cuda_func_call

        self.ir.evaluate(cuda_func_call(name, *args, source_code=source))

    def load_left(
        self, tile: Tile, index: Sequence[Any], lane: Any, into: Any, at: int, *, turn: bool
    ) -> None:
        """16 × 16 numbers of a tile from ``index`` on into ``into[at:at + 8]``.

        Four matrices of 8 × 8: the upper left, lower left, upper right and lower right one, each transposed
        with ``turn``. As a left factor that is a fragment.
        """
        *outer, row, column = index
        place = (*outer, row + lane % 16, column + lane // 16 * 8)
        self._ldmatrix(turn, tile, place, into, at)

    def load_right(
        self, tile: Tile, index: Sequence[Any], lane: Any, into: Any, at: int, *, turn: bool
    ) -> None:
        """Two fragments of a right factor, 16 deep, 8 columns each, into ``into[at:at + 8]``.

        Without ``turn`` the tile's rows are the factor's columns; with it they are its rows.
        """
        *outer, row, column = index
        if turn:
            place = (*outer, row + lane % 16, column + lane // 16 * 8)
        else:
            place = (*outer, row + lane % 8 + lane // 16 * 8, column + lane % 16 // 8 * 8)
        self._ldmatrix(turn, tile, place, into, at)

    def _ldmatrix(self, turn: bool, tile: Tile, place: Sequence[Any], into: Any, at: int) -> None:
        from tvm.backend.cuda.script import PTXLegacyNamespace

        source = tile.whole.access_ptr("r")
        places = (into.data, at, source, tile.at(place))
        self.ir.evaluate(PTXLegacyNamespace().ldmatrix(turn, 4, ".b16", *places, dtype=self.dtype))

    def product(self, left: Any, i: int, right: Any, j: int, sums: Any, k: int) -> None:
        """``sums[k:k + 4] += left[i:i + 8] @ right[j:j + 4]``, fragments all, in float32."""
        from tvm.backend.cuda.script import PTXLegacyNamespace

        kind = DTYPES[self.dtype]
        shape = ("m16n8k16", "row", "col", kind, kind, "fp32")
        places = (left.data, i, right.data, j, sums.data, k)
        self.ir.evaluate(PTXLegacyNamespace().mma(*shape, *places, False, dtype="float32"))

    def over_row(self, value: Any, join: Callable[[Any, Any], Any], threads: int = 4) -> Any:
        """``join`` of a row's numbers, which ``threads`` side by side hold: in each. ``value``: [1]."""
        from tvm.backend.cuda.op import cuda_func_call

        for mask in (1 << bit for bit in range(threads.bit_length() - 1)):
            other = cuda_func_call(
                "from_lane_xor", value[0], mask, source_code=_SHUFFLE, return_type="float32"
            )
            self.store(value, join(value[0], other), 0)
        return value[0]

    def fetch(
        self,
        tile: Tile,
        outer: Sequence[Any],
        shape: tuple[int, int],
        thread: tuple[Any, int],
        source: Callable[[Any, Any], tuple[Any, Sequence[Any], Any]],
    ) -> None:
        """Starts copying ``shape`` rows and columns of a tile; ``source``: buffer, index, whether there."""
        rows, columns = shape
        index, count = thread
        across = columns // CHUNK
        total = rows * across
        for turn in range(-(-total // count)):
            at = index + turn * count
            row, column = at // across, at % across * CHUNK

            def write(row: Any = row, column: Any = column) -> None:
                buffer, place, there = source(row, column)
                self.copy(tile, (*outer, row, column), buffer, place, there)

            if (turn + 1) * count <= total:
                write()
            else:
                with self.ir.If(at < total), self.ir.Then():
                    write()


def device_func(name: str, dtype: str, body: Callable[[Device], None]) -> Any:
    """The PrimFunc that ``body`` writes, for CUDA; its attribute ``shared_memory`` is bytes a block."""
    devices = []

    def write(b: Body) -> None:
        devices.append(Device(b.ir, dtype))
        body(devices[0])

    function = prim_func(name, write)
    return function.with_attr("shared_memory", devices[0].shared_bytes)
