"""Static buffers of a decoder on a device, by rows and capacity, with their bindings and captured graphs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ...compiler.errors import InternalError
from ...compiler.program import Decoding, TensorSpec
from ..device_memory import Buffer, Memory, Mirrored

GRAPHS = 256
"""Captured graphs of a session: what is beyond runs without; a graph is never freed before the session."""

IDLE = 4
"""Buckets kept that no decoder uses now."""


class Bucket:
    """Everything of one (rows, capacity) that steps run over; no address in it ever changes.

    ``sides``: state tensors, twice if past and present can't be one. ``lengths``, ``tokens``: two that take
    turns, so that what a step writes is what the next one reads. ``logits``: [rows, 1, vocabulary].
    ``steps``: a binding and its graph's number by turn and side. ``small``: buffers of prompts and drafts.
    """

    def __init__(
        self, memory: Memory, decoding: Decoding, specs: dict[str, TensorSpec], rows: int, capacity: int,
        in_place: bool,
    ) -> None:  # fmt: skip
        self.memory, self.rows, self.capacity = memory, rows, capacity
        self.sides = _sides(memory, decoding, specs, rows, capacity, in_place)
        self.lengths = [Mirrored(memory, (rows,)) for _ in range(2)]
        self.tokens = [Mirrored(memory, (rows, 1)) for _ in range(2)]
        self.logits = Mirrored(memory, (rows, 1, decoding.vocabulary), specs[decoding.logits].dtype)
        self.first = Mirrored(memory, (rows, 1))
        self.begins, self.ends = Mirrored(memory, (rows,)), Mirrored(memory, (rows, 1))
        self.steps: dict[tuple[int, int], tuple[Any, int | None]] = {}
        self.small: dict[tuple[str, tuple[int, ...]], Mirrored] = {}

    def mirrored(self, use: str, shape: Sequence[int], dtype: ir.DataType = ir.DataType.INT64) -> Mirrored:
        """A small buffer of this shape for one use, made once."""
        case = use, tuple(shape)
        if case not in self.small:
            self.small[case] = Mirrored(self.memory, shape, dtype)
        return self.small[case]

    def forget(self, use: str, count: int) -> None:
        """Free the small buffers of one use for ``count`` tokens."""
        for case in [case for case in self.small if case[0] == use and case[1][1] == count]:
            del self.small[case]


class Buckets:
    """The buckets of one session. Whoever takes one has it alone until it is given back.

    ``row_by_row``: a run takes several tokens of one row only, or of several rows if they fill the capacity.
    """

    def __init__(
        self,
        memory: Memory,
        decoding: Decoding,
        specs: Sequence[TensorSpec],
        *,
        in_place: bool,
        row_by_row: bool = False,
    ) -> None:
        self.memory, self.decoding, self.row_by_row = memory, decoding, row_by_row
        self.specs = {spec.name: spec for spec in specs}
        self._in_place = in_place
        self._idle: list[Bucket] = []
        self._graphs = 0
        self._lock = threading.Lock()

    def take(self, rows: int, capacity: int) -> Bucket:
        """A bucket that nobody has: an idle one, graphs and all, else a new one.

        Raises: DeviceError if there is no room for a new one.
        """
        with self._lock:
            for bucket in reversed(self._idle):
                if (bucket.rows, bucket.capacity) == (rows, capacity):
                    self._idle.remove(bucket)
                    return bucket
        return Bucket(self.memory, self.decoding, self.specs, rows, capacity, self._in_place)

    def give(self, bucket: Bucket) -> None:
        """Let others have it; of those that nobody has, the longest unused goes."""
        with self._lock:
            self._idle.append(bucket)
            del self._idle[:-IDLE]

    def sides(self, rows: int, capacity: int) -> list[list[Buffer]]:
        """State tensors alone, of no bucket. Raises: DeviceError if there is no room."""
        return _sides(self.memory, self.decoding, self.specs, rows, capacity, self._in_place)

    def graph(self) -> int | None:
        """The number of a graph to be captured; None if the session captures nothing, or no more."""
        with self._lock:
            if not self.memory.captures or self._graphs == GRAPHS:
                return None
            self._graphs += 1
            return self._graphs


def _sides(
    memory: Memory, decoding: Decoding, specs: dict[str, TensorSpec], rows: int, capacity: int, in_place: bool
) -> list[list[Buffer]]:
    states = [specs[state.input] for state in decoding.state]
    return [
        [memory.empty(_shape(spec, rows, capacity), spec.dtype) for spec in states]
        for _ in range(1 if in_place else 2)
    ]


def _shape(spec: TensorSpec, rows: int, capacity: int) -> tuple[int, ...]:
    shape = spec.shape or ()
    if len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
        raise InternalError(f"state {spec} is not [batch, heads, capacity, width] with fixed heads, width")
    return rows, shape[1], capacity, shape[3]
