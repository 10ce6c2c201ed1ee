"""What an emitter works with: strided views of memory, and the entry function that it adds steps to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import onnx_ir as ir

Size: TypeAlias = int | str
"""A count of elements: a number, or a C expression in the entry's sizes (``batch``, ``(batch * tokens)``)."""

CTYPES: dict[ir.DataType, str] = {
    ir.DataType.FLOAT: "float",
    ir.DataType.FLOAT16: "uint16_t",
    ir.DataType.INT8: "int8_t",
    ir.DataType.UINT8: "uint8_t",
    ir.DataType.INT32: "int32_t",
    ir.DataType.INT64: "int64_t",
    ir.DataType.BOOL: "uint8_t",
}
"""dtypes a buffer can have, in C; FLOAT16 and INT8 only hold a cache."""


def times(*sizes: Size) -> Size:
    """The product, ones left out.

    >>> times("batch", 1, 4, "tokens")
    '(4 * batch * tokens)'
    """
    number, names = 1, []
    for size in sizes:
        if isinstance(size, int):
            number *= size
        else:
            names.append(size)
    if number == 0 or not names:
        return number
    parts = [*([str(number)] if number != 1 else []), *names]
    return parts[0] if len(parts) == 1 else f"({' * '.join(parts)})"


@dataclass(frozen=True, slots=True)
class View:
    """A tensor in memory: element ``i`` of axis ``k`` lies ``i * strides[k]`` elements behind ``pointer``.

    ``pointer``: a C expression of type ``ctype *``. A stride of 0 repeats (Expand).
    """

    pointer: str
    ctype: str
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether it lies row-major without gaps; axes of one element may have any stride."""
        expected: Size = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1:
                if stride != expected:
                    return False
                expected = times(size, expected)
        return True


def row_major(shape: Sequence[Size]) -> tuple[Size, ...]:
    """Strides of a contiguous tensor."""
    strides: list[Size] = []
    step: Size = 1
    for size in reversed(shape):
        strides.append(step)
        step = times(size, step)
    return tuple(reversed(strides))


class Entry(Protocol):
    """The C function of one entry while its nodes are emitted in order."""

    def view(self, value: ir.Value) -> View:
        """Where a node's input lies: a buffer, an entry's input, a constant, or an alias of one."""
        ...

    def contiguous(self, value: ir.Value) -> View:
        """``view``, copied by a step of its own if it is not contiguous."""
        ...

    def new(self, value: ir.Value, strides: Sequence[Size] | None = None) -> View:
        """Memory for a node's output, contiguous by default; ``strides`` permute its axes in memory."""
        ...

    def alias(self, value: ir.Value, view: View) -> None:
        """The output is ``view``, other memory seen differently: no code."""
        ...

    def constant(self, value: ir.Value) -> View:
        """A plain copy of a constant in the weight file."""
        ...

    def sizes(self, value: ir.Value) -> tuple[Size, ...]:
        """The shape of ``value`` in C. Raises: UnsupportedError if a size is unknown when compiled."""
        ...

    def step(self, node: ir.Node, code: str) -> None:
        """Add C statements that every worker runs (``w`` is the worker); a barrier follows.

        Loops over a lot of elements take their part by ``share(w, total, grain)``; what is small is done by
        worker 0: ``if (w->index == 0)``. The step begins with a comment that names the node's source layer.
        """
        ...


Emitter: TypeAlias = Callable[[ir.Node, Entry], None]
"""Emits one node. It was asked before whether it can: see ``Reason``."""

Reason: TypeAlias = Callable[[ir.Node], str | None]
"""None if a node can be emitted, else why not, in a few words."""
