"""Loops over strided tensors: axes that lie alike joined, the last one innermost, rows shared by workers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .base import Size, View, bare, times

SMALL = 4096
"""Elements below which a loop is one worker's: sharing them would cost more than it saves."""

ROW = 64
"""Elements from which an inner loop is long enough to be alone."""

_AXES = "ijklmnpqtuvz"


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor in a loop: its C ``name`` there, and the elements between neighbours along every axis."""

    name: str
    view: View
    strides: tuple[Size, ...]
    written: bool = False

    @property
    def pointer(self) -> str:
        """The type of a pointer to it."""
        return f"{'' if self.written else 'const '}{self.view.ctype} *restrict "


def aligned(view: View, shape: Sequence[Size]) -> tuple[Size, ...]:
    """Strides of ``view`` along the axes of ``shape`` that it is broadcast to."""
    missing = len(shape) - len(view.shape)
    strides: list[Size] = [0] * missing
    for size, stride, wanted in zip(view.shape, view.strides, shape[missing:], strict=True):
        if size == wanted:
            strides.append(stride)
        elif isinstance(size, int):
            strides.append(0 if size == 1 else stride)
        else:
            strides.append(f"({size} == 1 ? 0 : {stride})")
    return tuple(strides)


def written(view: View, name: str = "y") -> Operand:
    """The tensor that a loop over its own shape fills."""
    return Operand(name, view, view.strides, written=True)


def read(view: View, shape: Sequence[Size], name: str = "x") -> Operand:
    """A tensor that a loop over ``shape`` reads, broadcast."""
    return Operand(name, view, aligned(view, shape))


def joined(
    shape: Sequence[Size], strides: Sequence[Sequence[Size]]
) -> tuple[list[Size], list[tuple[Size, ...]]]:
    """``shape`` without axes of one element, neighbours that every tensor strides through alike made one.

    >>> joined((2, 1, "n", 4), [(times(4, "n"), 9, 4, 1), (4, 9, 0, 1)])
    ([2, 'n', 4], [('(4 * n)', 4, 1), (4, 0, 1)])
    >>> joined((2, 1, "n", 4), [(times(4, "n"), 9, 4, 1)])
    (['(8 * n)'], [(1,)])
    """
    sizes: list[Size] = []
    steps: list[list[Size]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        here = [s[axis] for s in strides]
        if sizes and all(times(size, step) == before[-1] for step, before in zip(here, steps, strict=True)):
            sizes[-1] = times(sizes[-1], size)
            for step, before in zip(here, steps, strict=True):
                before[-1] = step
        else:
            sizes.append(size)
            for step, before in zip(here, steps, strict=True):
                before.append(step)
    return sizes, [tuple(s) for s in steps]


def _by_rows(
    shape: Sequence[Size], strides: Sequence[Sequence[Size]]
) -> tuple[list[Size], list[tuple[Size, ...]]]:
    """``joined``, but a long last axis stays alone where not all are one: there are more rows to share."""
    sizes, steps = joined(shape, strides)
    last = next((axis for axis in reversed(range(len(shape))) if shape[axis] != 1), 0)
    inner = shape[last] if shape else 1
    if len(sizes) < 2 or sizes[-1] == inner or (isinstance(inner, int) and inner < ROW):
        return sizes, steps
    sizes, steps = joined(shape[:last], [s[:last] for s in strides])
    return [*sizes, inner], [(*outer, s[last]) for outer, s in zip(steps, strides, strict=True)]


def offset(names: Sequence[str], strides: Sequence[Size]) -> str:
    """What to add to a pointer for the indices ``names``; empty if nothing."""
    parts = [
        f" + {name}" if stride == 1 else f" + {name} * {stride}"
        for name, stride in zip(names, strides, strict=True)
        if stride != 0
    ]
    return "".join(parts)


def element(pointer: str, index: str, stride: Size) -> str:
    """One element of a row: ``x[i]``, ``x[i * 3]``, ``*x``."""
    if stride == 0:
        return f"*{pointer}"
    return f"{pointer}[{index}]" if stride == 1 else f"{pointer}[{index} * {stride}]"


def loop(
    shape: Sequence[Size],
    operands: Sequence[Operand],
    body: Callable[[Sequence[str]], Sequence[str]],
    grain: int = SMALL,
) -> str:
    """C that runs ``body`` for every element of ``shape``, given what each operand's element is called.

    ``grain``: elements that a worker takes at least, fewer where one costs more.
    """
    sizes, strides = _by_rows(shape, [o.strides for o in operands])
    if not sizes:
        lines = body([f"{o.view.pointer}[0]" for o in operands])
        return _block("if (w->index == 0)", lines)
    rows = [
        f"{o.pointer}{o.name} = {o.view.pointer}{offset(_AXES[: len(sizes) - 1], s[:-1])};"
        for o, s in zip(operands, strides, strict=True)
    ]
    inner = _AXES[len(sizes) - 1]
    elements = [element(o.name, inner, s[-1]) for o, s in zip(operands, strides, strict=True)]
    lines = list(body(elements))
    if len(sizes) == 1:
        share = f"share(w, {bare(sizes[0])}, {grain})"
        total = sizes[0]
        if isinstance(total, int) and total < grain:
            return _block("if (w->index == 0)", [*rows, *_for(inner, "0", total, lines)])
        return "\n".join(
            ["{", *_in([f"range part = {share};", *rows, *_for(inner, "part.begin", "part.end", lines)]), "}"]
        )
    return over_rows(sizes[:-1], [*rows, *_for(inner, "0", sizes[-1], lines)], per_row(sizes[-1], grain))


def per_row(inner: Size, grain: int = SMALL) -> Size:
    """Rows of ``inner`` elements that make up ``grain``."""
    return (
        max(1, grain // max(1, inner))
        if isinstance(inner, int)
        else f"({grain} / max64({bare(inner)}, 1) + 1)"
    )


def over_rows(sizes: Sequence[Size], lines: Sequence[str], grain: Size) -> str:
    """C that runs ``lines`` for every index ``i``, ``j``, ... below ``sizes``, shared by workers.

    ``grain``: how many of them a worker takes at least.
    """
    total = times(*sizes)
    if not sizes or (isinstance(total, int) and isinstance(grain, int) and total <= grain):
        inside = list(lines)
        for name, size in reversed([(n, s) for n, s in zip(_AXES, sizes, strict=False)]):
            inside = _for(name, "0", size, inside)
        return _block("if (w->index == 0)", inside)
    share = f"range part = share(w, {bare(total)}, {bare(grain)});"
    if len(sizes) == 1:
        return "\n".join(["{", *_in([share, *_for("i", "part.begin", "part.end", lines)]), "}"])
    indices = []
    used = {
        axis for axis in range(len(sizes)) if any(re.search(rf"\b{_AXES[axis]}\b", line) for line in lines)
    }
    for axis in sorted(used):
        behind = times(*sizes[axis + 1 :])
        index = "row" if behind == 1 else f"row / {behind}"
        indices.append(f"{_AXES[axis]} = {index}" + (f" % {sizes[axis]}" if axis else ""))
    decoded = [f"int64_t {', '.join(indices)};"] if indices else []
    return "\n".join(["{", *_in([share, *_for("row", "part.begin", "part.end", [*decoded, *lines])]), "}"])


def head_of(name: str, size: Size) -> str:
    """The head of a loop over ``size`` elements."""
    return f"for (int64_t {name} = 0; {name} < {bare(size)}; {name}++)"


def names_of(count: int) -> str:
    """What ``over_rows`` calls the indices of so many axes."""
    return _AXES[:count]


def _for(name: str, begin: str, end: Size, lines: Sequence[str]) -> list[str]:
    head = f"for (int64_t {name} = {begin}; {name} < {bare(end)}; {name}++)"
    return _block(head, lines).split("\n")


def _block(head: str, lines: Sequence[str]) -> str:
    if len(lines) == 1 or (
        lines
        and lines[0].startswith("for (")
        and not any(line and not line.startswith((" ", "}")) for line in lines[1:])
    ):
        return "\n".join([head, *_in(lines)])
    return "\n".join([f"{head} {{", *_in(lines), "}"])


def _in(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" if line else line for line in lines]
