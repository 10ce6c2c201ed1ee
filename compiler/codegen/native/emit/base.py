"""What an emitter works with: strided views of memory, and the entry function that it adds steps to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import onnx_ir as ir

from ..pack import PackedWeight

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
    """The product in one form, whatever it was made of: the number first, names in order, ones left out.

    >>> times("tokens", times("batch", 1, 4))
    '(4 * batch * tokens)'
    """
    number, names = 1, []
    for size in sizes:
        if isinstance(size, int):
            number *= size
            continue
        for factor in _factors(size):
            if factor.isdigit():
                number *= int(factor)
            else:
                names.append(factor)
    if number == 0 or not names:
        return number
    parts = [*([str(number)] if number != 1 else []), *sorted(names)]
    return parts[0] if len(parts) == 1 else f"({' * '.join(parts)})"


def bare(text: Size) -> str:
    """An expression where nothing is next to it: without brackets around the whole.

    >>> bare("(4 * batch)"), bare("(a + b) * (c)"), bare(3)
    ('4 * batch', '(a + b) * (c)', '3')
    """
    text, depth = str(text), 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0 and place < len(text) - 1:
            return text
    return text[1:-1] if text.startswith("(") else text


def divided(size: Size, by: Size) -> Size | None:
    """``size / by`` where the factors of ``by`` are among those of ``size``, else None.

    >>> divided("(4 * batch * tokens)", times(2, "tokens"))
    '(2 * batch)'
    """
    above, below = factors(size), factors(by)
    left = list(above[1])
    for name in below[1]:
        if name not in left:
            return None
        left.remove(name)
    if below[0] == 0 or above[0] % below[0]:
        return None
    return times(above[0] // below[0], *left)


def factors(size: Size) -> tuple[int, tuple[str, ...]]:
    """The number and the names (or sums, calls) whose product ``size`` is."""
    if isinstance(size, int):
        return size, ()
    parts = _factors(size)
    number = 1
    for part in parts:
        if part.isdigit():
            number *= int(part)
    return number, tuple(sorted(p for p in parts if not p.isdigit()))


def _factors(text: str) -> list[str]:
    """Operands of a product ``(a * b * c)``; any other text is its own only one."""
    if not (text.startswith("(") and text.endswith(")")):
        return [text]
    parts, depth, begin = [], 0, 1
    for place, sign in enumerate(text[:-1]):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return [text]  # (a + b) * (c): the first bracket ends before the last
        if depth == 1 and place and text.startswith(" * ", place):
            parts.append(text[begin:place])
            begin = place + 3
        elif depth == 1 and text[place : place + 3] in (" + ", " - ", " / ", " % "):
            return [text]
    return [*parts, text[begin:-1]]


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
        What it reads and writes is what ``view`` and ``new`` gave whose pointers are in ``code``. ``run`` is
        the ``call`` of kernels/program.h: an index outside of a table is ``fail(run, "...")``.
        """
        ...

    def over(self, value: ir.Value, old: ir.Value, strides: Sequence[Size] | None = None) -> View:
        """``new`` in the memory of ``old``, if nothing reads ``old`` behind this node.

        Only where every element is written by the worker that reads it, and after it read it.
        """
        ...

    def constants_beside(self, values: Sequence[ir.Value]) -> View:
        """Plain copies of constants, one behind the other, as if the first axis went on."""
        ...

    def packing(self, values: Sequence[ir.Value]) -> PackedWeight:
        """How a weight, or the gate and up weights of a gated layer, is packed."""
        ...

    def packed(self, weights: Sequence[Sequence[ir.Value]]) -> tuple[str, PackedWeight]:
        """Weights of one packing, one behind the other as if they were one: their address, what they are.

        Each is one value, or gate and up; all but the last have a multiple of 16 rows.
        """
        ...

    def is_packed(self, value: ir.Value) -> bool:
        """Whether ``value`` is a constant [rows, columns] that some Linear takes, or that is quantized."""
        ...

    def function(self, name: str, text: str) -> str:
        """A function of model.c, once for the same text, and its name: ``name``, numbered if that is taken.

        ``text`` is its whole definition, with ``NAME`` where its name goes.
        """
        ...

    def scratch(self, worker: Size, shared: Size) -> None:
        """Bytes of scratch memory that a step's kernels ask for, in the entry's sizes."""
        ...


Emitter: TypeAlias = Callable[[ir.Node, Entry], None]
"""Emits one node. It was asked before whether it can: see ``Reason``."""

Reason: TypeAlias = Callable[[ir.Node], str | None]
"""None if a node can be emitted, else why not, in a few words."""


@dataclass(frozen=True, slots=True)
class Operator:
    """How an operator is emitted, and which nodes of it can't be.

    Every file of emitters ends with ``OPERATORS: dict[str, Operator]``, by operator name (``miaotui::Linear``
    for one of another domain); ``table.py`` joins them.
    """

    emit: Emitter
    reason: Reason = lambda node: None
